//! What a publish depends on: `Idempotency-Key`, `If-Match` and `If-None-Match`.

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::http::request::Parts;
use sha2::{Digest as _, Sha256};

use super::error::{Error, clip};
use crate::event::{Digest, EventId, parse_id};
use crate::log::{IdempotencyKey, Terms};

/// The header of a publish that may be repeated.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Most bytes of an idempotency key.
const KEY_BYTES_MAX: usize = 128;

/// What the headers ask for; the body is still to come.
#[derive(Debug)]
pub struct Asked {
    last: Option<EventId>,
    key: Option<Digest>,
}

/// Reads them; `one_topic` says whether the path names one.
///
/// # Errors
/// When a header is malformed, given twice, or not for this.
pub fn asked(headers: &HeaderMap, one_topic: bool) -> Result<Asked, Error> {
    let if_match = one(headers, &IF_MATCH, "If-Match")?.map(if_match).transpose()?;
    let none = one(headers, &IF_NONE_MATCH, "If-None-Match")?.map(if_none_match).transpose()?.map(|()| 0);
    let last = match (if_match, none) {
        (Some(last), Some(0)) if last > 0 => {
            let why = format!("If-Match asks for the event {last}, and If-None-Match: * for none; send one of them");
            return Err(Error::Header { name: "If-None-Match", why });
        }
        (if_match, none) => if_match.or(none),
    };
    if last.is_some() && !one_topic {
        let name = if if_match.is_some() { "If-Match" } else { "If-None-Match" };
        let why = "a condition is for one topic; publish to /topics/{topic}".to_owned();
        return Err(Error::Header { name, why });
    }
    let key = one(headers, &IDEMPOTENCY_KEY, "Idempotency-Key")?.map(key).transpose()?;
    Ok(Asked { last, key })
}

impl Asked {
    /// Whether the body is to be looked at for it.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The terms of this request with this body. At some 300 MB/s and more it takes its time.
    #[must_use]
    pub fn terms(&self, target: &Target, body: &[u8]) -> Terms {
        let key = self.key.map(|key| IdempotencyKey { key, request: target.digest(body) });
        Terms { last: self.last, key }
    }
}

/// What makes two publishes the same beside their bodies.
#[derive(Debug, Default)]
pub struct Target(Vec<u8>);

impl Target {
    /// Method, target and content type.
    #[must_use]
    pub fn of(request: &Parts) -> Self {
        let content_type = request.headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        let target = request.uri.path_and_query().map_or("", |target| target.as_str());
        let mut all = Vec::new();
        for part in [request.method.as_str().as_bytes(), target.as_bytes(), content_type] {
            // With its length before it, no part can pass for the beginning of the next.
            all.extend_from_slice(&(part.len() as u64).to_be_bytes());
            all.extend_from_slice(part);
        }
        Self(all)
    }

    fn digest(&self, body: &[u8]) -> Digest {
        half(Sha256::new().chain_update(&self.0).chain_update(body))
    }
}

fn half(hash: Sha256) -> Digest {
    let whole: [u8; 32] = hash.finalize().into();
    let (half, _) = whole.split_first_chunk::<16>().expect("32 bytes begin with 16");
    Digest(*half)
}

fn one<'a>(headers: &'a HeaderMap, header: &HeaderName, name: &'static str) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(header).iter();
    let value = values.next();
    match values.next() {
        None => Ok(value),
        Some(_) => Err(Error::Header { name, why: "it is given more than once".to_owned() }),
    }
}

fn shown(value: &HeaderValue) -> String {
    clip(&String::from_utf8_lossy(value.as_bytes()))
}

fn if_match(value: &HeaderValue) -> Result<EventId, Error> {
    let quoted = value.to_str().ok().and_then(|text| text.trim().strip_prefix('"')?.strip_suffix('"'));
    quoted.and_then(|id| parse_id(id).ok()).ok_or_else(|| {
        let why = format!("it is the id of the topic's newest event in quotes, such as \"42\", not {}", shown(value));
        Error::Header { name: "If-Match", why }
    })
}

fn if_none_match(value: &HeaderValue) -> Result<(), Error> {
    if value.as_bytes().trim_ascii() == b"*" {
        return Ok(());
    }
    let why = format!("it is *, for a topic that holds no event, not {}", shown(value));
    Err(Error::Header { name: "If-None-Match", why })
}

fn key(value: &HeaderValue) -> Result<Digest, Error> {
    let key = value.as_bytes();
    let is_text = key.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !is_text {
        let why =
            format!("it is 1 to {KEY_BYTES_MAX} visible ASCII characters, new for each publish, not {}", shown(value));
        return Err(Error::Header { name: "Idempotency-Key", why });
    }
    Ok(half(Sha256::new().chain_update(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::post(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn terms(headers: &[(&str, &str)]) -> Result<Terms, Error> {
        let request = parts("/topics/a", headers);
        Ok(asked(&request.headers, true)?.terms(&Target::of(&request), b"x"))
    }

    #[test]
    fn conditions_are_ids_in_quotes_and_the_star() {
        assert_eq!(terms(&[]).unwrap(), Terms::default());
        assert_eq!(terms(&[("If-Match", "\"42\"")]).unwrap().last, Some(42));
        assert_eq!(terms(&[("If-Match", "\"0\"")]).unwrap().last, Some(0));
        assert_eq!(terms(&[("If-None-Match", "*")]).unwrap().last, Some(0));
        assert_eq!(terms(&[("If-None-Match", "*"), ("If-Match", "\"0\"")]).unwrap().last, Some(0));
        for bad in ["42", "*", "W/\"42\"", "\"42\", \"43\"", "\"\"", "", "\"-1\"", "\"9007199254740992\""] {
            assert!(matches!(terms(&[("If-Match", bad)]), Err(Error::Header { name: "If-Match", .. })), "{bad}");
        }
        for bad in ["\"42\"", "", "**"] {
            assert!(terms(&[("If-None-Match", bad)]).is_err(), "{bad}");
        }
        assert!(terms(&[("If-None-Match", "*"), ("If-Match", "\"1\"")]).is_err());
        assert!(terms(&[("If-Match", "\"1\""), ("If-Match", "\"1\"")]).is_err());
    }

    #[test]
    fn a_condition_is_for_one_topic() {
        for header in [("If-Match", "\"1\""), ("If-None-Match", "*")] {
            assert!(matches!(asked(&parts("/topics", &[header]).headers, false), Err(Error::Header { .. })));
        }
        assert!(asked(&parts("/topics", &[("Idempotency-Key", "k")]).headers, false).is_ok());
    }

    #[test]
    fn keys_are_visible_text_of_bounded_length() {
        assert!(terms(&[("Idempotency-Key", &"k".repeat(128))]).unwrap().key.is_some());
        for bad in ["", &"k".repeat(129), "é"] {
            assert!(terms(&[("Idempotency-Key", bad)]).is_err(), "{bad}");
        }
        assert!(terms(&[("Idempotency-Key", "a"), ("Idempotency-Key", "a")]).is_err());
    }

    #[test]
    fn a_request_is_its_method_target_content_type_and_body() {
        let key = |target: &str, content_type: &str, body: &[u8], key: &str| {
            let request = parts(target, &[("Content-Type", content_type), ("Idempotency-Key", key)]);
            asked(&request.headers, true).unwrap().terms(&Target::of(&request), body).key.unwrap()
        };
        let first = key("/topics/a?key=k", "text/plain", b"x", "1");
        assert_eq!(first, key("/topics/a?key=k", "text/plain", b"x", "1"));
        for other in [
            key("/topics/a?key=l", "text/plain", b"x", "1"),
            key("/topics/a?key=k", "text/html", b"x", "1"),
            key("/topics/a?key=k", "text/plain", b"y", "1"),
            key("/topics/a?key=k", "text/plai", b"nx", "1"),
        ] {
            assert_eq!(other.key, first.key);
            assert_ne!(other.request, first.request);
        }
        assert_ne!(key("/topics/a?key=k", "text/plain", b"x", "2").key, first.key);
    }
}
