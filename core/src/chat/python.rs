//! The methods of Python's `str` and `dict` that templates call.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

/// Calls `method` on a string or map.
pub(super) fn call(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => string(text, method, arguments),
        (None, ValueKind::Map) => map(value, method, arguments),
        _ => Err(unknown(method)),
    }
}

fn unknown(method: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("there is no method {method}"))
}

fn string(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            let strips = |c: char| characters.map_or(c.is_whitespace(), |characters| characters.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(strips) };
            if method == "lstrip" { text } else { text.trim_end_matches(strips) }.into()
        }
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "capitalize" => capitalized(text).into(),
        "title" => text.split_inclusive(|c: char| !c.is_alphabetic()).map(capitalized).collect::<String>().into(),
        "startswith" => affixes(arguments)?.iter().any(|affix| text.starts_with(affix)).into(),
        "endswith" => affixes(arguments)?.iter().any(|affix| text.ends_with(affix)).into(),
        "split" | "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(arguments)?;
            split(text, separator, limit, method == "rsplit")?.into()
        }
        "splitlines" => text.lines().map(Value::from).collect(),
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(arguments)?;
            if text.len().saturating_mul(to.len() + 1) > 64 << 20 {
                return Err(Error::new(ErrorKind::InvalidOperation, "replace would make a huge text"));
            }
            match count.and_then(|count| usize::try_from(count).ok()) {
                Some(count) => text.replacen(from, to, count).into(),
                None => text.replace(from, to).into(),
            }
        }
        "find" | "rfind" => {
            let (what,): (&str,) = from_args(arguments)?;
            let at = if method == "find" { text.find(what) } else { text.rfind(what) };
            at.map_or(-1, |at| text[..at].chars().count() as i64).into()
        }
        "count" => {
            let (what,): (&str,) = from_args(arguments)?;
            text.matches(what).count().into()
        }
        "join" => {
            let (items,): (Value,) = from_args(arguments)?;
            let items: Vec<String> = items.try_iter()?.map(|item| item.to_string()).collect();
            items.join(text).into()
        }
        "isdigit" => (!text.is_empty() && text.chars().all(char::is_numeric)).into(),
        "isalpha" => (!text.is_empty() && text.chars().all(char::is_alphabetic)).into(),
        "isspace" => (!text.is_empty() && text.chars().all(char::is_whitespace)).into(),
        "removeprefix" => {
            let (affix,): (&str,) = from_args(arguments)?;
            text.strip_prefix(affix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (affix,): (&str,) = from_args(arguments)?;
            text.strip_suffix(affix).unwrap_or(text).into()
        }
        _ => return Err(unknown(method)),
    })
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().collect::<String>()).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

/// The one prefix or suffix, or the tuple of them, that `startswith` and `endswith` take.
fn affixes(arguments: &[Value]) -> Result<Vec<String>, Error> {
    let (affix,): (Value,) = from_args(arguments)?;
    match affix.as_str() {
        Some(text) => Ok(vec![text.to_owned()]),
        None => Ok(affix.try_iter()?.map(|item| item.to_string()).collect()),
    }
}

fn split(text: &str, separator: Option<&str>, limit: Option<i64>, from_end: bool) -> Result<Vec<String>, Error> {
    let pieces_max =
        limit.and_then(|limit| usize::try_from(limit).ok()).map_or(usize::MAX, |limit| limit.saturating_add(1));
    let Some(separator) = separator else {
        return Ok(text.split_whitespace().map(str::to_owned).collect());
    };
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let owned = |pieces: &mut dyn Iterator<Item = &str>| pieces.map(str::to_owned).collect::<Vec<_>>();
    if !from_end {
        return Ok(owned(&mut text.splitn(pieces_max, separator)));
    }
    let mut pieces = owned(&mut text.rsplitn(pieces_max, separator));
    pieces.reverse();
    Ok(pieces)
}

fn map(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "keys" => value.try_iter()?.collect(),
        "values" => value.try_iter()?.map(|key| value.get_item(&key)).collect::<Result<_, _>>()?,
        "items" => {
            let pair = |key: Value| value.get_item(&key).map(|item| Value::from(vec![key, item]));
            value.try_iter()?.map(pair).collect::<Result<_, _>>()?
        }
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(arguments)?;
            let found = value.get_item(&key)?;
            if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found }
        }
        _ => return Err(unknown(method)),
    })
}
