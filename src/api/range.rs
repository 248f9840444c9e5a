//! Ranges and validators: which bytes a client wants, which ones it sends, and which ones it has.

use std::ops::Range;

use http::{
    HeaderMap,
    header::{CONTENT_RANGE, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE},
};

use crate::{
    error::{Code, Error, Result},
    oci::Digest,
};

/// The most ranges that one request is served; with more it gets the whole, which costs less (CVE-2011-3192).
const MAX_RANGES: usize = 16;

/// What a client wants of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    One(Range<u64>),
    /// These bytes, each range by itself.
    Several(Vec<Range<u64>>),
    /// Nothing that it has.
    Nothing,
}

/// What of `size` bytes a request wants.
pub fn wanted(headers: &HeaderMap, digest: &Digest, size: u64) -> Wanted {
    let Some(range) = headers.get(RANGE) else { return Wanted::Whole };
    if let Some(validator) = headers.get(IF_RANGE)
        && !validator.to_str().is_ok_and(|tag| tag.trim_matches('"') == digest.as_str())
    {
        return Wanted::Whole;
    }
    match range.to_str().ok().and_then(|text| text.trim().strip_prefix("bytes=")) {
        Some(ranges) => wanted_ranges(ranges, size),
        // Another unit than bytes, which we have no use for.
        None => Wanted::Whole,
    }
}

fn wanted_ranges(text: &str, size: u64) -> Wanted {
    if size == 0 || text.split(',').count() > MAX_RANGES {
        return Wanted::Whole;
    }
    let mut ranges = Vec::new();
    for spec in text.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        match wanted_range(spec, size) {
            Ok(Some(range)) => ranges.push(range),
            Ok(None) => {}
            Err(Malformed) => return Wanted::Nothing,
        }
    }
    let sum: u64 = ranges.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add);
    match ranges.pop() {
        None => Wanted::Nothing,
        Some(range) if ranges.is_empty() => Wanted::One(range),
        // Ranges that overlap so much are an attack or a mistake.
        Some(_) if sum > size => Wanted::Whole,
        Some(range) => {
            ranges.push(range);
            Wanted::Several(ranges)
        }
    }
}

struct Malformed;

/// `first-last`, `first-` or `-length`; `None` if no byte of `size` is in it.
fn wanted_range(spec: &str, size: u64) -> std::result::Result<Option<Range<u64>>, Malformed> {
    let (first, last) = spec.split_once('-').ok_or(Malformed)?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let length = number(last).ok_or(Malformed)?.min(size);
        return Ok((length > 0).then(|| size - length..size));
    }
    let first = number(first).ok_or(Malformed)?;
    let end = if last.is_empty() { size } else { number(last).ok_or(Malformed)?.saturating_add(1).min(size) };
    if first >= size {
        return Ok(None);
    }
    if end <= first { Err(Malformed) } else { Ok(Some(first..end)) }
}

/// Digits only; a number that is too large is as large as there is.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The bytes that a request says it sends, by `Content-Range`: `first-last` as the distribution spec has it,
/// or HTTP's `bytes first-last/size`. `None` if it doesn't say.
pub fn sent(headers: &HeaderMap) -> Result<Option<Range<u64>>> {
    let Some(value) = headers.get(CONTENT_RANGE) else { return Ok(None) };
    match value.to_str().ok().and_then(sent_range) {
        Some(range) => Ok(Some(range)),
        None => Err(Error::new(Code::RangeInvalid, "Content-Range must be <first byte>-<last byte>")),
    }
}

fn sent_range(text: &str) -> Option<Range<u64>> {
    let text = text.trim();
    let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let (range, _) = text.split_once('/').unwrap_or((text, ""));
    let (first, last) = range.split_once('-')?;
    let (first, end) = (number(first.trim())?, number(last.trim())?.checked_add(1)?);
    (first < end).then_some(first..end)
}

impl Wanted {
    /// How many bytes of `size` are wanted, where they are in one piece.
    pub fn length(&self, size: u64) -> Option<u64> {
        match self {
            Self::Whole => Some(size),
            Self::One(range) => Some(range.end - range.start),
            Self::Several(_) | Self::Nothing => None,
        }
    }
}

/// Whether an answer depends on a validator that only we know: a store that was asked the same would compare the
/// client's digest with an ETag of its own.
pub fn depends_on_digest(headers: &HeaderMap) -> bool {
    headers.contains_key(IF_RANGE) || headers.contains_key(IF_MATCH)
}

/// Whether the client has what it asks for already: `If-None-Match` names its digest, in quotes as it must
/// be or without, weakly or not, alone or among others.
pub fn has_already(headers: &HeaderMap, digest: &Digest) -> bool {
    let is_it = |tag: &str| {
        let tag = tag.trim();
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.trim_matches('"') == digest.as_str()
    };
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(is_it)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::oci::Algorithm;

    fn with(headers: &[(HeaderName, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"")
    }

    #[test]
    fn ranges_are_cut_to_what_is_there() {
        use Wanted::{Nothing, One, Several, Whole};
        for (text, size, expected) in [
            ("bytes=0-0", 10, One(0..1)),
            ("bytes=2-5", 10, One(2..6)),
            ("bytes=2-", 10, One(2..10)),
            ("bytes=-3", 10, One(7..10)),
            ("bytes=-30", 10, One(0..10)),
            ("bytes=2-99", 10, One(2..10)),
            ("bytes=9-18446744073709551615", 10, One(9..10)),
            ("bytes=2-99999999999999999999999", 10, One(2..10)),
            ("bytes= 2 - 5 ", 10, One(2..6)),
            ("bytes=10-", 10, Nothing),
            ("bytes=5-4", 10, Nothing),
            ("bytes=-0", 10, Nothing),
            ("bytes=", 10, Nothing),
            ("bytes=x", 10, Nothing),
            ("bytes=-", 10, Nothing),
            ("bytes=+1-2", 10, Nothing),
            ("bytes=0-1,3-4", 10, Several(vec![0..2, 3..5])),
            ("bytes=0-1, 20-30", 10, One(0..2)),
            ("bytes=0-1,,-2", 10, Several(vec![0..2, 8..10])),
            ("bytes=0-,0-", 10, Whole),
            ("bytes=0-", 0, Whole),
            ("items=0-1", 10, Whole),
        ] {
            assert_eq!(wanted(&with(&[(RANGE, text)]), &digest(), size), expected, "{text}");
        }
        let many = format!("bytes={}", vec!["0-0"; MAX_RANGES + 1].join(","));
        assert_eq!(wanted(&with(&[(RANGE, &many)]), &digest(), 100), Whole);
        assert_eq!(wanted(&HeaderMap::new(), &digest(), 100), Whole);
    }

    #[test]
    fn a_range_of_something_else_is_not_served() {
        let quoted = format!("\"{}\"", digest());
        for (validator, expected) in [
            (quoted.as_str(), Wanted::One(0..1)),
            ("\"other\"", Wanted::Whole),
            (&format!("W/{quoted}"), Wanted::Whole),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Wanted::Whole),
        ] {
            let headers = with(&[(RANGE, "bytes=0-0"), (IF_RANGE, validator)]);
            assert_eq!(wanted(&headers, &digest(), 5), expected, "{validator}");
        }
    }

    #[test]
    fn what_is_sent_is_said_in_either_form() {
        for (text, expected) in [
            ("0-0", Some(0..1)),
            ("5-9", Some(5..10)),
            ("bytes 5-9/10", Some(5..10)),
            ("bytes 5-9/*", Some(5..10)),
            ("bytes=5-9", Some(5..10)),
            ("5-4", None),
            ("5-", None),
            ("-5", None),
            ("", None),
            ("a-b", None),
            ("0-18446744073709551615", None),
        ] {
            let range = sent(&with(&[(CONTENT_RANGE, text)]));
            assert_eq!(range.as_ref().ok().cloned().flatten(), expected, "{text}");
            assert_eq!(range.is_err(), expected.is_none(), "{text}");
        }
        assert_eq!(sent(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_digest_is_recognised_as_clients_write_it() {
        let it = digest();
        for good in [&format!("\"{it}\""), it.as_str(), &format!("W/\"{it}\""), &format!("\"x\", \"{it}\""), "*"] {
            assert!(has_already(&with(&[(IF_NONE_MATCH, good)]), &it), "{good}");
        }
        for bad in ["", "\"x\"", "sha256:0"] {
            assert!(!has_already(&with(&[(IF_NONE_MATCH, bad)]), &it), "{bad}");
        }
        assert!(!has_already(&HeaderMap::new(), &it));
    }
}
