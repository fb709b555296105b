use axum::http::HeaderMap;
use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};

/// Which part of a file a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it.
    Whole,
    /// Bytes `start..end`.
    Part(std::ops::Range<u64>),
    /// None: the client has it.
    NotModified,
    /// No byte of the file is in the range, or the range is malformed.
    NotSatisfiable,
}

/// Reads `If-None-Match`, `If-Range` and `Range` (RFC 9110, sections 13 and 14) for a file of `size` bytes whose strong
/// entity tag is `etag`, quotes included.
pub(super) fn select(headers: &HeaderMap, etag: &str, size: u64) -> Selection {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let listed = |list: &str| list.split(',').any(|tag| matches!(tag.trim(), "*") || weak(tag.trim()) == etag);
    if text(IF_NONE_MATCH).is_some_and(listed) {
        return Selection::NotModified;
    }
    // If-Range compares strongly; a date never matches, for these files have none.
    if text(IF_RANGE).is_some_and(|tag| tag.trim() != etag) {
        return Selection::Whole;
    }
    let Some(range) = text(RANGE) else { return Selection::Whole };
    let Some((unit, ranges)) = range.split_once('=') else { return Selection::NotSatisfiable };
    // Units that are not known must be ignored; several ranges may be, and no client of ours asks for them.
    if !unit.trim().eq_ignore_ascii_case("bytes") || ranges.contains(',') {
        return Selection::Whole;
    }
    part(ranges.trim(), size).filter(|part| !part.is_empty()).map_or(Selection::NotSatisfiable, Selection::Part)
}

fn part(range: &str, size: u64) -> Option<std::ops::Range<u64>> {
    let (first, last) = range.split_once('-')?;
    match (first, last) {
        ("", last) => Some(size.saturating_sub(number(last)?)..size),
        (first, "") => Some(number(first)?..size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| first..last.saturating_add(1).min(size))
        }
    }
}

// Numbers beyond 64 bits are beyond any file; a sign, which `parse` takes, is malformed.
fn number(digits: &str) -> Option<u64> {
    let digits_only = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits_only.then(|| digits.parse().unwrap_or(u64::MAX))
}

// If-None-Match compares weakly.
fn weak(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    const ETAG: &str = "\"sha256:00\"";

    fn selected(headers: &[(HeaderName, &str)]) -> Selection {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        select(&headers, ETAG, 100)
    }

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let expected = [
            ("bytes=0-9", Selection::Part(0..10)),
            ("bytes=90-", Selection::Part(90..100)),
            ("bytes=99-99", Selection::Part(99..100)),
            ("bytes=-5", Selection::Part(95..100)),
            ("bytes=-500", Selection::Part(0..100)),
            ("bytes=50-500", Selection::Part(50..100)),
            ("bytes=0-99999999999999999999999", Selection::Part(0..100)),
            ("Bytes= 0-9", Selection::Part(0..10)),
            ("lines=0-9", Selection::Whole),
            ("bytes=0-1,5-6", Selection::Whole),
        ];
        for (range, selection) in expected {
            assert_eq!(selected(&[(RANGE, range)]), selection, "{range}");
        }
    }

    #[test]
    fn rejects_ranges_outside_the_file_and_malformed_ones() {
        for range in
            ["bytes=100-", "bytes=-0", "bytes=9-5", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "bytes", "bytes=5"]
        {
            assert_eq!(selected(&[(RANGE, range)]), Selection::NotSatisfiable, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_version_gives_the_whole_file() {
        assert_eq!(selected(&[(RANGE, "bytes=5-"), (IF_RANGE, ETAG)]), Selection::Part(5..100));
        for other in ["\"sha256:11\"", "W/\"sha256:00\"", "Wed, 25 Nov 2026 00:00:00 GMT"] {
            assert_eq!(selected(&[(RANGE, "bytes=5-"), (IF_RANGE, other)]), Selection::Whole, "{other}");
        }
    }

    #[test]
    fn a_file_the_client_has_is_not_sent() {
        for tags in [ETAG, "\"x\", W/\"sha256:00\"", "*"] {
            assert_eq!(selected(&[(IF_NONE_MATCH, tags), (RANGE, "bytes=5-")]), Selection::NotModified, "{tags}");
        }
        assert_eq!(selected(&[(IF_NONE_MATCH, "\"sha256:11\"")]), Selection::Whole);
    }
}
