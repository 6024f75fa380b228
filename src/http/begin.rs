//! Where a stream or a page begins: the header, the two query names for it, `from=`, or the form's own default.
//!
//! The time is an argument. Must not know what is in the log.

use hyper::HeaderMap;
use hyper::header::HeaderName;

use super::error::{Error, clip};
use super::query::Query;
use crate::event::{EventId, Millis, parse_id};
use crate::log::{Begin, BundleKind};

/// The header of a client that comes back.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The query parameters that are read here.
pub const PARAMETERS: [&str; 3] = ["last_event_id", "lastEventId", "from"];

/// A wish, with where it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// `None`: with the bundle.
    pub begin: Option<Begin>,
    /// What the URL asks for, at the beginning or, where an id says where that is, after a gap.
    pub bundle: Option<BundleKind>,
    /// Said by the header `Last-Event-ID`: by a client that comes back.
    pub by_header: bool,
}

/// Reads the wish; without one it is `default`. Everything given is checked, also what does not win.
///
/// # Errors
/// When an id is malformed, or `from=` makes no sense.
pub fn begin(headers: &HeaderMap, query: &Query, default: Begin, now: Millis) -> Result<Wish, Error> {
    let by_header = header(headers)?;
    // A polyfill that reconnects keeps the page's URL and adds the name it knows, so that name is the newer.
    let mut by_query = None;
    for name in ["last_event_id", "lastEventId"] {
        if let Some(text) = given(query, name)? {
            by_query = Some(parse_id(text).map_err(|why| Error::id(name, why))?);
        }
    }
    let (from, bundle) = match given(query, "from")? {
        None => (Some(default), None),
        Some("state") => (None, Some(BundleKind::State)),
        Some("snapshot") => (None, Some(BundleKind::Snapshot)),
        Some(text) => (Some(from(text, now)?), None),
    };
    let begin = match by_header.or(by_query) {
        Some(id) => Some(Begin::After(id)),
        None => from,
    };
    Ok(Wish { begin, bundle, by_header: by_header.is_some() })
}

/// What the header says, if it is given and not empty.
///
/// # Errors
/// When it is malformed, or given twice.
pub fn header(headers: &HeaderMap) -> Result<Option<EventId>, Error> {
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::IdTwice);
    }
    if value.is_empty() {
        return Ok(None);
    }
    let text = value.to_str().unwrap_or("not ASCII");
    parse_id(text).map(Some).map_err(|why| Error::id("the header Last-Event-ID", why))
}

/// The value of `name`; an empty one counts as absent.
fn given<'a>(query: &'a Query, name: &str) -> Result<Option<&'a str>, Error> {
    Ok(query.one(name)?.filter(|text| !text.is_empty()))
}

fn from(text: &str, now: Millis) -> Result<Begin, Error> {
    match text {
        "earliest" => return Ok(Begin::Earliest),
        "latest" => return Ok(Begin::Latest),
        _ => {}
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let id = |text| parse_id(text).map_err(|why| Error::id("from", why));
    if digits(text) {
        // There is no event 0; at it is where everything begins.
        return Ok(match id(text)? {
            0 => Begin::After(0),
            n => Begin::At(n),
        });
    }
    if let Some(count) = text.strip_prefix('-').filter(|rest| digits(rest)) {
        return Ok(Begin::Last(id(count)?));
    }
    if let Some(time) = time(text) {
        return Ok(Begin::Time(time));
    }
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(Begin::Time(now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))));
    }
    Err(Error::Query(format!(
        "from={:?}: it is earliest, latest, state, snapshot, an id, -N for the last N, a time such as 2026-11-22T10:00:00Z, or an age such as 15m",
        clip(text)
    )))
}

/// An RFC 3339 time, rounded up to a millisecond: what is older than the time is older than the answer. Times before 1970
/// are before every event.
fn time(text: &str) -> Option<Millis> {
    // Where a query is decoded, the + of an offset has become a space.
    let time: jiff::Timestamp = text.replace(' ', "+").parse().ok()?;
    let nanoseconds = u128::try_from(time.as_nanosecond()).unwrap_or(0);
    u64::try_from(nanoseconds.div_ceil(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const NOW: Millis = 1_795_341_600_000; // 2026-11-22T10:00:00Z

    fn wish(header: Option<&[u8]>, raw: &str) -> Result<Wish, Error> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(LAST_EVENT_ID, HeaderValue::from_bytes(value).unwrap());
        }
        begin(&headers, &Query::parse(Some(raw)).unwrap(), Begin::Latest, NOW)
    }

    #[test]
    fn the_first_that_is_present_wins() {
        let begin = |header: Option<&[u8]>, raw: &str| wish(header, raw).unwrap().begin.unwrap();
        assert_eq!(begin(Some(b"7"), "last_event_id=8&from=9"), Begin::After(7));
        assert_eq!(begin(None, "last_event_id=8&from=9"), Begin::After(8));
        assert_eq!(begin(None, "lastEventId=8&from=9"), Begin::After(8));
        assert_eq!(begin(None, "lastEventId=8&last_event_id=3"), Begin::After(8));
        assert_eq!(begin(None, "from=9"), Begin::At(9));
        assert_eq!(begin(None, ""), Begin::Latest);
        assert_eq!(begin(Some(b""), "last_event_id=&lastEventId=&from="), Begin::Latest);
        assert_eq!(begin(Some(b"0"), ""), Begin::After(0));
        assert!(wish(Some(b"7"), "").unwrap().by_header && !wish(None, "last_event_id=7").unwrap().by_header);
    }

    #[test]
    fn a_url_that_asks_for_a_bundle_asks_for_it_after_a_gap_too() {
        let fresh = wish(None, "from=state").unwrap();
        assert_eq!((fresh.begin, fresh.bundle), (None, Some(BundleKind::State)));
        let resumed = wish(Some(b"7"), "from=snapshot").unwrap();
        assert_eq!((resumed.begin, resumed.bundle), (Some(Begin::After(7)), Some(BundleKind::Snapshot)));
        assert_eq!(wish(Some(b"7"), "from=3").unwrap().bundle, None);
    }

    #[test]
    fn from_says_it_in_many_ways() {
        let begin = |raw: &str| wish(None, raw).unwrap().begin.unwrap();
        assert_eq!(begin("from=earliest"), Begin::Earliest);
        assert_eq!(begin("from=latest"), Begin::Latest);
        assert_eq!(begin("from=0"), Begin::After(0));
        assert_eq!(begin("from=9007199254740991"), Begin::At(9_007_199_254_740_991));
        assert_eq!(begin("from=-10"), Begin::Last(10));
        for time in [
            "2026-11-22T10:00:00Z",
            "2026-11-22T11:00:00%2B01:00",
            "2026-11-22T11:00:00+01:00",
            "2026-11-22T11:00:00 01:00",
            "2026-11-22T05:00:00-05:00",
            "2026-11-22T09:59:59.9999999Z",
        ] {
            assert_eq!(begin(&format!("from={time}")), Begin::Time(NOW), "{time}");
        }
        assert_eq!(begin("from=2026-11-22T10:00:00.123Z"), Begin::Time(NOW + 123));
        assert_eq!(begin("from=1901-01-01T00:00:00Z"), Begin::Time(0));
        assert_eq!(begin("from=15m"), Begin::Time(NOW - 900_000));
        assert_eq!(begin("from=1h30m"), Begin::Time(NOW - 5_400_000));
        assert_eq!(begin("from=7d"), Begin::Time(NOW - 604_800_000));
        assert_eq!(begin("from=1000y"), Begin::Time(0));
    }

    #[test]
    fn malformed_ids_and_other_nonsense_are_told_apart() {
        let is_id = |r: Result<Wish, Error>| matches!(r, Err(Error::Id { .. }));
        let is_query = |r: Result<Wish, Error>| matches!(r, Err(Error::Query(_)));
        for header in [&b"x"[..], b"-1", b"1 ", b"9007199254740992", b"\xff", b"1\xc3\xa9"] {
            assert!(is_id(wish(Some(header), "")), "{header:?}");
        }
        for raw in ["last_event_id=x", "lastEventId=-1", "from=9007199254740992", "from=-9007199254740992"] {
            assert!(is_id(wish(None, raw)), "{raw}");
        }
        for raw in [
            "from=x",
            "from=-x",
            "from=-",
            "from=1.5",
            "from=states",
            "from=2026-11-22",
            "from=5x",
            "from=1&from=2",
            "from=2026-13-22T10:00:00Z",
            "from=2026-11-22T10:00:00",
        ] {
            assert!(is_query(wish(None, raw)), "{raw}");
        }
        // Checked even where the header wins: a typo is not silence.
        assert!(is_query(wish(Some(b"7"), "from=x")));
    }
}
