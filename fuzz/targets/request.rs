//! What a request says before its body: path, query and headers, each held against a reading of the contract that is written here anew.
//! Nothing makes it panic, and what is refused names what is wrong.

use hyper::Request;
use hyper::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use tidelog::event::{EVENT_ID_MAX, Millis};
use tidelog::http::accept::{self, Answer};
use tidelog::http::begin::{self, LAST_EVENT_ID};
use tidelog::http::cross_site::CrossSite;
use tidelog::http::error::Error;
use tidelog::http::problem::Problem;
use tidelog::http::query::Query;
use tidelog::http::route::{self, Resource};
use tidelog::http::terms::{self, Target};
use tidelog::log::{Begin, BundleKind, Terms};

const NOW: Millis = 1_795_341_600_000;

/// The first line is the target; the others are headers.
pub fn run(data: &[u8]) {
    let mut lines = data.split(|&b| b == b'\n');
    let target = lines.next().unwrap_or_default();
    let Ok(request) = Request::builder().uri(target).body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    for line in lines {
        let colon = line.iter().position(|&b| b == b':').unwrap_or(line.len());
        // As HTTP gives them: without white space around.
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            parts.headers.append(name, value);
        }
    }
    path(parts.uri.path());
    if let Some(query) = query(parts.uri.query()) {
        beginning(&parts.headers, &query);
    }
    form(&parts.headers);
    conditions(&parts);
    origin(&parts);
}

/// An error is told as problem details.
fn refused(error: Error) -> Problem {
    let problem = Problem::from(error);
    let json: serde_json::Value = serde_json::from_str(&problem.json()).expect("problem details are JSON");
    assert_eq!(json["code"].as_str(), Some(problem.code.as_str()));
    assert!(!problem.detail.is_empty() && problem.detail.len() < 4096, "{}", problem.detail);
    problem
}

fn path(path: &str) {
    let Some(resource) = Resource::of(path) else { return };
    assert!(resource.allow().contains("OPTIONS"));
    let (Resource::Topic(segment)
    | Resource::Retention(segment)
    | Resource::State(segment)
    | Resource::Snapshot(segment)
    | Resource::Close(segment)) = resource
    else {
        return assert!(resource.pattern().is_ok());
    };
    assert!(path.starts_with("/topics/") && path["/topics/".len()..].starts_with(segment) && !segment.contains('/'));
    let text = decoded(segment.as_bytes(), false);
    match (route::topic(segment), &text) {
        (Ok(topic), Some(text)) => assert_eq!(topic.as_str(), text),
        (Ok(topic), None) => panic!("{topic} of {segment:?}"),
        (Err(error), _) => assert_eq!(refused(error).code.as_str(), "bad_topic"),
    }
    match (route::pattern(segment), &text) {
        (Ok(pattern), Some(text)) => assert_eq!(pattern.as_str(), text),
        (Ok(pattern), None) => panic!("{pattern} of {segment:?}"),
        (Err(error), _) => assert_eq!(refused(error).code.as_str(), "bad_pattern"),
    }
}

/// Percent-decoding, byte by byte; `None` when that is no UTF-8.
fn decoded(text: &[u8], plus_is_space: bool) -> Option<String> {
    let digit = |at: usize| text.get(at).and_then(|&b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let (mut out, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let (byte, len) = match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => (high << 4 | low, 3),
            (b'+', ..) if plus_is_space => (b' ', 1),
            (byte, ..) => (byte, 1),
        };
        out.push(byte);
        at += len;
    }
    String::from_utf8(out).ok()
}

/// The parameters as the contract gives them, or `None` where they are refused.
fn query(raw: Option<&str>) -> Option<Vec<(String, String)>> {
    let parts: Vec<&str> = raw.unwrap_or_default().split('&').filter(|p| !p.is_empty()).collect();
    let pair = |part: &&str| {
        let (name, value) = part.find('=').map_or((*part, ""), |at| (&part[..at], &part[at + 1..]));
        Some((decoded(name.as_bytes(), true)?, decoded(value.as_bytes(), true)?))
    };
    let want: Option<Vec<_>> = parts.iter().map(pair).collect();
    let want = want.filter(|_| parts.len() <= 1000);
    match (Query::parse(raw), &want) {
        (Ok(query), Some(want)) => same_query(&query, want, raw),
        (Err(error), None) => assert_eq!(refused(error).code.as_str(), "bad_query"),
        (got, want) => panic!("{raw:?}: {got:?}, but {want:?}"),
    }
    want
}

fn same_query(query: &Query, want: &[(String, String)], raw: Option<&str>) {
    // Where both can read it, it is what every form means.
    let form: Vec<_> = form_urlencoded::parse(raw.unwrap_or_default().as_bytes()).into_owned().collect();
    assert_eq!(form, want);
    for (name, _) in want {
        let values: Vec<_> = want.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        assert_eq!(query.all(name).collect::<Vec<_>>(), values);
        assert_eq!(query.one(name).ok().flatten(), Some(values[0]).filter(|_| values.len() == 1));
        // Values are read strictly: what is taken is written just so.
        if let Ok(Some(count)) = query.count(name, 1000) {
            assert!((1..=1000).contains(&count) && values[0].trim_start_matches('0') == count.to_string());
        }
        if let Ok(Some(flag)) = query.flag(name) {
            assert_eq!(values[0], flag.to_string());
        }
        let max = std::time::Duration::from_secs(60);
        if let Ok(Some(duration)) = query.duration(name, max) {
            assert!(duration <= max);
        }
    }
    assert!(query.only("it", &[]).is_ok() == want.is_empty());
}

/// An id, by the contract: `None` is malformed.
fn id(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let value = digits.then(|| text.trim_start_matches('0')).filter(|d| d.len() <= 16)?;
    let n = value.bytes().fold(0, |n, d| n * 10 + u64::from(d - b'0'));
    (n <= EVENT_ID_MAX).then_some(n)
}

fn beginning(headers: &HeaderMap, pairs: &[(String, String)]) {
    let raw: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let query = Query::parse(Some(&raw)).expect("it was parsed before");
    let got = begin::begin(headers, &query, Begin::Latest, NOW);
    // What is present, in the order in which it wins; `Err` where it is given twice.
    let given = |name: &str| {
        let mut values = pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value.filter(|v| !v.is_empty())),
            _ => Err(()),
        }
    };
    let mut by_header = headers.get_all(LAST_EVENT_ID).iter();
    let header = match (by_header.next(), by_header.next()) {
        (value, None) => {
            Ok(value.filter(|v| !v.is_empty()).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()))
        }
        _ => Err(()),
    };
    let (Ok(header), Ok(snake), Ok(camel), Ok(from)) =
        (header, given("last_event_id"), given("lastEventId"), given("from"))
    else {
        assert!(got.is_err(), "something is given twice");
        return;
    };
    let ids: Vec<_> = [header.as_deref(), camel, snake].into_iter().flatten().map(id).collect();
    if ids.contains(&None) {
        let error = got.expect_err("an id is malformed");
        assert_eq!(refused(error).code.as_str(), "bad_id");
        return;
    }
    let wish = match got {
        Ok(wish) => wish,
        Err(error) => {
            let is_id = from.is_some_and(|f| f.trim_start_matches('-').chars().all(|c| c.is_ascii_digit()));
            assert!(from.is_some(), "{error}");
            return assert!(["bad_query", if is_id { "bad_id" } else { "" }].contains(&refused(error).code.as_str()));
        }
    };
    assert_eq!(wish.by_header, header.is_some());
    let bundle = match from {
        Some("state") => Some(BundleKind::State),
        Some("snapshot") => Some(BundleKind::Snapshot),
        _ => None,
    };
    assert_eq!(wish.bundle, bundle);
    let first = ids.first().copied().flatten();
    let want = match (first, from) {
        (Some(id), _) => Some(Begin::After(id)),
        (None, None | Some("latest")) => Some(Begin::Latest),
        (None, Some("earliest")) => Some(Begin::Earliest),
        (None, Some("state" | "snapshot")) => None,
        (None, Some(text)) => match (id(text), text.strip_prefix('-').and_then(id)) {
            (Some(0), _) => Some(Begin::After(0)),
            (Some(n), _) => Some(Begin::At(n)),
            (None, Some(n)) => Some(Begin::Last(n)),
            // A time or an age: it is one, and no id is hidden in it.
            (None, None) => return assert!(matches!(wish.begin, Some(Begin::Time(_))), "{text}: {wish:?}"),
        },
    };
    assert_eq!(wish.begin, want, "{from:?}");
}

/// What `Accept` allows a type, by its most specific range; where two are as specific, by the better.
fn weight(ranges: &[(String, u32)], kind: &str) -> Option<(u32, usize)> {
    let any = format!("{}/*", kind.split('/').next().unwrap_or_default());
    [(2, kind), (1, &*any), (0, "*/*")].into_iter().find_map(|(specific, name)| {
        ranges.iter().filter(|(range, _)| range == name).map(|(_, q)| (*q, specific)).max()
    })
}

fn form(headers: &HeaderMap) {
    let lines: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let mut ranges: Vec<(String, u32)> = Vec::new();
    for range in lines.iter().flat_map(|line| line.split(',')) {
        let mut parts = range.split(';');
        let kind = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        if !kind.contains('/') {
            continue;
        }
        // The last q counts; a range whose q is none is passed over.
        let mut q = Some(1000);
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if name.trim().eq_ignore_ascii_case("q") && part.contains('=') {
                q = q.and(thousandths(value.trim()));
            }
        }
        ranges.extend(q.map(|q| (kind, q)));
    }
    let got = accept::choose(headers);
    let empty = headers.get_all(ACCEPT).iter().all(|v| v.as_bytes().trim_ascii().is_empty());
    let offers = [
        (Answer::EventStream, "text/event-stream"),
        (Answer::Lines, "application/x-ndjson"),
        (Answer::Page, "application/json"),
    ];
    let mut best: Option<((u32, usize), Answer)> = None;
    for (answer, kind) in offers {
        if let Some(weight) = weight(&ranges, kind).filter(|(q, _)| *q > 0)
            && best.is_none_or(|(most, _)| weight > most)
        {
            best = Some((weight, answer));
        }
    }
    let want = if empty { Some(Answer::EventStream) } else { best.map(|(_, answer)| answer) };
    assert_eq!(got.ok(), want, "{lines:?}");
    let named = ranges.iter().any(|(range, q)| range == "text/event-stream" && *q > 0);
    assert_eq!(accept::names_event_stream(headers), named, "{lines:?}");
}

fn thousandths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_at_checked(1)?;
    let fraction = if fraction.is_empty() { "" } else { fraction.strip_prefix('.')? };
    let digits = fraction.len() <= 3 && fraction.bytes().all(|b| b.is_ascii_digit());
    let q: u32 = digits.then(|| format!("{whole}{fraction:0<3}").parse().ok())??;
    (q <= 1000 && matches!(whole, "0" | "1")).then_some(q)
}

fn conditions(request: &Parts) {
    let headers = &request.headers;
    let all = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let (matches, none, keys) = (all("if-match"), all("if-none-match"), all("idempotency-key"));
    let asked = terms::asked(headers, true);
    let last = |value: &[u8]| id(std::str::from_utf8(value).ok()?.trim().strip_prefix('"')?.strip_suffix('"')?);
    let is_key = |k: &&[u8]| (1..=128).contains(&k.len()) && k.iter().all(|b| (b' '..=b'~').contains(b));
    let good = matches.len() < 2
        && none.len() < 2
        && keys.len() < 2
        && matches.iter().all(|m| last(m).is_some())
        && none.iter().all(|n| *n == b"*")
        && keys.iter().all(is_key);
    let last = matches.first().and_then(|m| last(m));
    let contradicts = last.is_some_and(|n| n > 0) && !none.is_empty();
    let Ok(asked) = asked else {
        let error = asked.expect_err("it is one");
        assert!(!good || contradicts, "{error}");
        assert_eq!(refused(error).code.as_str(), "bad_header");
        return;
    };
    assert!(good && !contradicts, "{headers:?}");
    let want = last.or(if none.is_empty() { None } else { Some(0) });
    assert_eq!(terms::asked(headers, false).is_ok(), want.is_none(), "a condition is for one topic");
    let target = Target::of(request);
    let Terms { last, key } = asked.terms(&target, b"a body");
    assert_eq!((last, key.is_some(), asked.has_key()), (want, !keys.is_empty(), !keys.is_empty()));
    // The same request again is the same; anything else is not.
    assert_eq!(asked.terms(&target, b"a body").key, key);
    if let Some(key) = key {
        let other = |change: &dyn Fn(&mut Parts)| {
            let mut parts = Request::new(()).into_parts().0;
            (parts.method, parts.uri, parts.headers) = (request.method.clone(), request.uri.clone(), headers.clone());
            change(&mut parts);
            asked.terms(&Target::of(&parts), b"a body").key.expect("it has a key")
        };
        assert_eq!(other(&|_| ()), key);
        assert_ne!(other(&|parts| parts.method = hyper::Method::PUT).request, key.request);
        assert_ne!(other(&|parts| parts.uri = "/another".parse().expect("it is one")).request, key.request);
        let kind = HeaderValue::from_static("another/type");
        assert_ne!(other(&|p| drop(p.headers.insert("content-type", kind.clone()))).request, key.request);
        assert_ne!(asked.terms(&target, b"a bodz").key.expect("it has a key").request, key.request);
    }
}

/// Who may ask from where.
fn origin(request: &Parts) {
    let listed = ["https://app.example".to_owned(), "http://[::1]:3000".to_owned()];
    let origins: Vec<_> = request.headers.get_all("origin").iter().collect();
    let host = request.uri.authority().map_or_else(
        || request.headers.get("host").and_then(|h| h.to_str().ok()).map(str::to_owned),
        |authority| Some(authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()),
    );
    for (allowed, loopback) in [(&[][..], true), (&listed, true), (&listed, false), (&["*".to_owned()], false)] {
        let judged = CrossSite::new(allowed, loopback).judge(request);
        if judged.is_ok() && loopback {
            let host = host.as_deref().expect("on loopback there is a host");
            // The name, without its port.
            let name = match host.rsplit_once(':') {
                Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
                _ => host,
            };
            let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
            let is_loopback =
                name == "localhost" || name.starts_with("127.") || name.ends_with('1') && name.contains(':');
            assert!(is_loopback, "{host:?} passes for a loopback name");
        }
        match judged {
            Ok(None) if origins.is_empty() => {}
            Ok(own) => {
                assert_eq!(origins.len(), 1, "{origins:?}");
                let origin = origins[0].to_str().expect("it is text").to_ascii_lowercase();
                let is_own = host.as_ref().is_some_and(|host| {
                    let host = host.to_ascii_lowercase();
                    let bare = |text: &str, port: &str| text.strip_suffix(port).unwrap_or(text).to_owned();
                    let of =
                        |scheme: &str, port: &str| bare(&origin, port) == bare(&format!("{scheme}://{host}"), port);
                    of("http", ":80") || of("https", ":443")
                });
                let is_listed = allowed.iter().any(|a| *a == origin || *a == origin.trim_end_matches(":443"));
                let any = allowed.iter().any(|a| a == "*") && origin != "null";
                match own {
                    None => assert!(is_own, "{origin:?} passes for the origin of {host:?}"),
                    Some(_) => assert!(is_listed || any, "{origin:?} is let in"),
                }
            }
            Err(error) => {
                let code = refused(error).code;
                assert!(["forbidden", "forbidden_origin", "bad_header"].contains(&code.as_str()));
                let hosts = request.headers.get_all("host").iter().count();
                assert!(code.as_str() != "forbidden_origin" || !origins.is_empty());
                assert!(code.as_str() != "bad_header" || hosts > 0);
            }
        }
    }
}
