//! The conditions of a request for a file: `Range`, `If-Range`, `If-Match`, `If-None-Match` (RFC 9110).

use std::ops::RangeInclusive;

use axum::http::{HeaderMap, HeaderName, header};

use crate::files::OnlyIf;

/// Which bytes of a file a request is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    All,
    Part(RangeInclusive<u64>),
    /// A part that the file does not have.
    Nothing,
    /// The client has it already (304).
    Known,
    /// The client accepts only another version (412).
    Another,
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether one of the tags in a header is this one; `*` is any.
fn names(list: &str, tag: &str) -> bool {
    list.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// Multipart ranges are not supported: the whole file is a valid response, too.
pub fn wanted(headers: &HeaderMap, size: u64, tag: &str) -> Wanted {
    if text(headers, header::IF_MATCH).is_some_and(|list| !names(list, tag)) {
        return Wanted::Another;
    }
    if text(headers, header::IF_NONE_MATCH).is_some_and(|list| names(list, tag)) {
        return Wanted::Known;
    }
    let Some(range) = text(headers, header::RANGE) else { return Wanted::All };
    if text(headers, header::IF_RANGE).is_some_and(|wanted| wanted != tag) {
        return Wanted::All;
    }
    let part = range.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = part.and_then(|(_, range)| range.trim().split_once('-')) else {
        return Wanted::All;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last && first < size => Wanted::Part(first..=last.min(size - 1)),
        (Ok(first), Err(_)) if last.is_empty() && first < size => Wanted::Part(first..=size - 1),
        (Err(_), Ok(last)) if first.is_empty() && last > 0 && size > 0 => {
            Wanted::Part(size.saturating_sub(last)..=size - 1)
        }
        (Ok(first), Ok(last)) if first <= last => Wanted::Nothing,
        (Ok(_), Err(_)) if last.is_empty() => Wanted::Nothing,
        (Err(_), Ok(_)) if first.is_empty() => Wanted::Nothing,
        _ => Wanted::All,
    }
}

/// What must exist, or must not, for an upload to begin.
pub fn of_upload(headers: &HeaderMap) -> OnlyIf {
    let tags = |name| text(headers, name).map(str::to_owned);
    OnlyIf { is: tags(header::IF_MATCH), is_not: tags(header::IF_NONE_MATCH), names }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn ranges_of_a_download() {
        let of = |range, size| wanted(&headers(&[(header::RANGE, range)]), size, "\"t\"");
        assert_eq!(of("bytes=0-0", 10), Wanted::Part(0..=0));
        assert_eq!(of("bytes=3-", 10), Wanted::Part(3..=9));
        assert_eq!(of("bytes=-3", 10), Wanted::Part(7..=9));
        assert_eq!(of("bytes=-30", 10), Wanted::Part(0..=9));
        assert_eq!(of("bytes=3-99", 10), Wanted::Part(3..=9));
        assert_eq!(of("Bytes=3-4", 10), Wanted::Part(3..=4));
        for nothing in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(of(nothing, 10), Wanted::Nothing, "{nothing}");
        }
        assert_eq!(of("bytes=0-", 0), Wanted::Nothing);
        for all in ["bytes=5-3", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "bytes=-", "bytes=99999999999999999999-"] {
            assert_eq!(of(all, 10), Wanted::All, "{all}");
        }
        let other = headers(&[(header::RANGE, "bytes=0-0"), (header::IF_RANGE, "\"other\"")]);
        assert_eq!(wanted(&other, 10, "\"t\""), Wanted::All);
    }

    #[test]
    fn tags_decide_before_ranges() {
        let of = |name, value| wanted(&headers(&[(header::RANGE, "bytes=0-0"), (name, value)]), 10, "\"t\"");
        for known in ["\"t\"", "*", "\"a\", \"t\"", "W/\"t\""] {
            assert_eq!(of(header::IF_NONE_MATCH, known), Wanted::Known, "{known}");
            assert_eq!(of(header::IF_MATCH, known), Wanted::Part(0..=0), "{known}");
        }
        assert_eq!(of(header::IF_NONE_MATCH, "\"a\""), Wanted::Part(0..=0));
        assert_eq!(of(header::IF_MATCH, "\"a\""), Wanted::Another);
    }
}
