use serde_json::Value;

/// `value` as Python's `json.dumps(value, ensure_ascii=False)` writes it, which templates' training data had:
/// a space after each comma and colon, no HTML escapes.
pub(super) fn to_python(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write(value, indent, 0, &mut out);
    out
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(index, indent, depth + 1, out);
                write(item, indent, depth + 1, out);
            }
            end_line(indent, depth, out);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (index, (key, item)) in fields.iter().enumerate() {
                separate(index, indent, depth + 1, out);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write(item, indent, depth + 1, out);
            }
            end_line(indent, depth, out);
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn separate(index: usize, indent: Option<usize>, depth: usize, out: &mut String) {
    match (index, indent) {
        (0, None) => (),
        (0, Some(_)) => end_line(indent, depth, out),
        (_, None) => out.push_str(", "),
        (_, Some(_)) => {
            out.push(',');
            end_line(indent, depth, out);
        }
    }
}

fn end_line(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(width) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_like_python() {
        let value = serde_json::json!({"a": [1, 2.5, {"b": null}], "é<&>'": "\"\n", "e": {}, "l": []});
        assert_eq!(to_python(&value, None), r#"{"a": [1, 2.5, {"b": null}], "é<&>'": "\"\n", "e": {}, "l": []}"#);
        assert_eq!(to_python(&serde_json::json!({"a": [1]}), Some(2)), "{\n  \"a\": [\n    1\n  ]\n}");
    }
}
