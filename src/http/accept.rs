//! Which form a subscriber is answered in, by `Accept`: highest q, then most specific, then the contract's order.
//!
//! Must not know what the forms hold.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

use super::error::Error;

/// The forms, in the contract's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `text/event-stream`
    EventStream,
    /// `application/x-ndjson`
    Lines,
    /// `application/json`
    Page,
}

const OFFERS: [(Answer, &str, &str); 3] = [
    (Answer::EventStream, "text", "event-stream"),
    (Answer::Lines, "application", "x-ndjson"),
    (Answer::Page, "application", "json"),
];

/// Chooses the form.
///
/// # Errors
/// When `Accept` allows none of them.
pub fn choose(headers: &HeaderMap) -> Result<Answer, Error> {
    let ranges = ranges(headers);
    if ranges.is_empty() && headers.get_all(ACCEPT).iter().all(|v| v.as_bytes().trim_ascii().is_empty()) {
        return Ok(Answer::EventStream);
    }
    let mut best = None;
    for (answer, kind, subkind) in OFFERS {
        // The most specific range that covers a type gives its q, also where a wider one would give more.
        let weight = ranges.iter().filter_map(|r| r.covers(kind, subkind).map(|specificity| (specificity, r.q))).max();
        if let Some((specificity, q)) = weight
            && q > 0
            && best.is_none_or(|(most, _)| (q, specificity) > most)
        {
            best = Some(((q, specificity), answer));
        }
    }
    best.map(|(_, answer)| answer).ok_or(Error::NotAcceptable)
}

/// Whether the client names `text/event-stream` itself, as every `EventSource` does.
#[must_use]
pub fn names_event_stream(headers: &HeaderMap) -> bool {
    ranges(headers).iter().any(|r| r.q > 0 && r.covers("text", "event-stream") == Some(2))
}

struct Range {
    kind: String,
    subkind: String,
    /// In thousandths.
    q: u16,
}

impl Range {
    /// How specifically the range covers a type: 2 by name, 1 by `type/*`, 0 by `*/*`.
    fn covers(&self, kind: &str, subkind: &str) -> Option<u8> {
        match (self.kind.as_str(), self.subkind.as_str()) {
            ("*", "*") => Some(0),
            (k, "*") if k == kind => Some(1),
            (k, s) if k == kind && s == subkind => Some(2),
            _ => None,
        }
    }
}

/// The media ranges that can be read; others are passed over.
fn ranges(headers: &HeaderMap) -> Vec<Range> {
    let lines = headers.get_all(ACCEPT).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(range).collect()
}

fn range(text: &str) -> Option<Range> {
    let mut parts = text.split(';').map(str::trim);
    let (kind, subkind) = parts.next()?.split_once('/')?;
    let mut q = 1000;
    for parameter in parts {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            q = quality(value.trim())?;
        }
    }
    Some(Range { kind: kind.to_ascii_lowercase(), subkind: subkind.to_ascii_lowercase(), q })
}

/// `0`, `1`, `0.xyz` or `1.000`, in thousandths.
fn quality(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: u16 = match whole {
        "0" => 0,
        "1" => 1000,
        _ => return None,
    };
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    (whole + thousandths <= 1000).then_some(whole + thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn with(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    #[test]
    fn the_form_follows_q_then_specificity_then_the_table() {
        let cases: [(&[&str], Option<Answer>); 21] = [
            (&[], Some(Answer::EventStream)),
            (&[""], Some(Answer::EventStream)),
            (&["*/*"], Some(Answer::EventStream)),
            (&["text/event-stream"], Some(Answer::EventStream)),
            (&["TEXT/Event-Stream; charset=utf-8"], Some(Answer::EventStream)),
            (&["text/*"], Some(Answer::EventStream)),
            (&["application/*"], Some(Answer::Lines)),
            (&["application/json"], Some(Answer::Page)),
            (&["application/x-ndjson"], Some(Answer::Lines)),
            (&["application/json, */*"], Some(Answer::Page)),
            (&["application/json", "text/event-stream"], Some(Answer::EventStream)),
            (&["application/json;q=0.9, text/event-stream;q=0.8"], Some(Answer::Page)),
            (&["application/json;q=0.5, */*;q=0.6"], Some(Answer::EventStream)),
            (&["*/*, text/event-stream;q=0"], Some(Answer::Lines)),
            (&["application/*, application/x-ndjson;q=0.1"], Some(Answer::Page)),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Some(Answer::EventStream)),
            (&["text/html"], None),
            (&["text/event-stream;q=0"], None),
            (&["application/json;q=0.001"], Some(Answer::Page)),
            (&["application/json;q=2"], None),
            (&["nonsense"], None),
        ];
        for (lines, want) in cases {
            assert_eq!(choose(&with(lines)).ok(), want, "{lines:?}");
        }
    }

    #[test]
    fn an_event_source_names_its_type() {
        assert!(names_event_stream(&with(&["text/event-stream"])));
        assert!(!names_event_stream(&with(&["*/*"])));
        assert!(!names_event_stream(&with(&["text/event-stream;q=0, */*"])));
        assert!(!names_event_stream(&with(&[])));
    }
}
