//! The subscriber against a scripted server: what it asks, keeps, tries again and gives up on.

use tokio_stream::StreamExt as _;

use super::super::testing::{Act, PATIENCE, Scripted, answer, chunk, end, problem as problem_answer, stream};
use super::super::{Event, Problem};
use super::*;
use crate::event::EventRef;
use crate::sse::{Control, Form, GapReason};

fn frame(id: EventId, data: &str) -> String {
    let mut out = Vec::new();
    let event = EventRef { id, topic: "a.b", event: Some("t"), key: None, time: 1000, data };
    Form::SseEnvelope.event(&mut out, &event);
    String::from_utf8(out).unwrap()
}

fn control(cursor: EventId, control: &Control<'_>) -> String {
    let mut out = Vec::new();
    Form::Sse.control(&mut out, cursor, control);
    String::from_utf8(out).unwrap()
}

fn live(tail: EventId, log: &str) -> String {
    control(tail, &Control::Live { tail, log })
}

/// Reconnects at once.
fn quick() -> SubscribeOptions {
    SubscribeOptions { retry: Duration::ZERO, retry_max: BACKOFF_MIN, ..SubscribeOptions::default() }
}

fn follow(server: &Scripted, options: SubscribeOptions) -> Subscription {
    Client::new(&server.url).unwrap().subscribe(&[Pattern::parse("a.*").unwrap()], options)
}

/// What happened, told shortly; up to the end of the stream.
async fn told(subscription: &mut Subscription) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(item) = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("an item in time") {
        told.push(match item {
            Ok(Item::Event(Event { id, data, .. })) => format!("{id} {data}"),
            Ok(Item::Live { tail, .. }) => format!("live {tail}"),
            Ok(Item::Gap { requested, earliest, reason }) => format!("gap {requested} {earliest} {reason}"),
            Ok(Item::LogChanged { was, now }) => format!("log {was} {now}"),
            Ok(Item::Disconnected { .. }) => "disconnected".into(),
            Ok(Item::Error(Problem { code, .. })) => format!("error {code}"),
            Ok(other) => format!("{other:?}"),
            Err(error) => format!("failed: {error}"),
        });
    }
    told
}

#[tokio::test]
async fn a_stream_that_breaks_in_a_frame_resumes_without_gap_or_duplicate() {
    let second = frame(8, "two");
    let (torn, _) = second.split_at(second.len() - 1);
    let mut server = Scripted::start(vec![
        vec![stream("l", 9), chunk("retry: 1\n"), chunk(&frame(7, "one")), chunk(torn), Act::Close],
        vec![stream("l", 9), chunk(&(frame(8, "two") + &live(9, "l"))), Act::Close],
    ])
    .await;
    let options = SubscribeOptions { from: Some("7".into()), types: vec!["t".into(), "u v".into()], ..quick() };
    let mut subscription = follow(&server, options);
    assert_eq!(told(&mut subscription).await, ["7 one", "disconnected", "8 two", "live 9", "disconnected"]);
    assert_eq!((subscription.cursor(), subscription.log()), (Some(9), Some("l")));

    let first = server.seen().await;
    assert_eq!(first.target(), "/events?topic=a.*&event=t&event=u+v&from=7&envelope=json");
    assert_eq!((first.header("last-event-id"), first.header("accept")), (None, Some("text/event-stream")));
    let again = server.seen().await;
    assert_eq!((again.target(), again.header("last-event-id")), (first.target(), Some("7")));
    assert_eq!(server.seen().await.header("last-event-id"), Some("9"));
}

#[tokio::test]
async fn latest_is_where_the_first_head_says() {
    let mut server = Scripted::start(vec![vec![stream("l", 41), Act::Close]]).await;
    assert_eq!(told(&mut follow(&server, quick())).await, ["disconnected"]);
    assert_eq!(server.seen().await.header("last-event-id"), None);
    assert_eq!(server.seen().await.header("last-event-id"), Some("41"));
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let text = frame(1, "a\nb") + ":\n" + &frame(2, "ü");
    let Act::Send(bytes) = chunk(&text) else { unreachable!() };
    let server = Scripted::start(vec![vec![stream("l", 2), Act::SendBytewise(bytes), Act::Close]]).await;
    assert_eq!(told(&mut follow(&server, quick())).await, ["1 a\nb", "2 ü", "disconnected"]);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_final() {
    let mut server = Scripted::start(vec![
        vec![problem_answer("503 Service Unavailable", "draining", "d")],
        vec![problem_answer("429 Too Many Requests", "too_many_requests", "d")],
        vec![problem_answer("408 Request Timeout", "timeout", "d"), Act::Close],
        vec![Act::Close],
        vec![problem_answer("400 Bad Request", "bad_pattern", "no such pattern")],
    ])
    .await;
    let mut want = vec!["disconnected".to_owned(); 4];
    want.push("failed: the server refused: no such pattern (400 bad_pattern)".into());
    assert_eq!(told(&mut follow(&server, quick())).await, want);
    for _ in 0..5 {
        server.seen().await;
    }
    assert!(server.saw_no_more());
}

#[tokio::test]
async fn something_else_than_a_stream_is_final() {
    for other in [answer("200 OK", "text/html", "<p>"), answer("302 Found", "text/html", "")] {
        let server = Scripted::start(vec![vec![other]]).await;
        let got = told(&mut follow(&server, quick())).await;
        assert!(got.len() == 1 && got[0].contains("text/html"), "{got:?}");
    }
    let server = Scripted::start(vec![vec![stream("l", 1), chunk("id: 1\ndata: not an envelope\n\n")]]).await;
    let got = told(&mut follow(&server, quick())).await;
    assert!(got.len() == 1 && got[0].contains("cannot be read"), "{got:?}");
}

#[tokio::test]
async fn nothing_more_is_the_end() {
    let server = Scripted::start(vec![]).await;
    let options = SubscribeOptions { after: Some(5), ..quick() };
    assert_eq!(told(&mut follow(&server, options)).await, [""; 0]);
}

#[tokio::test]
async fn a_proper_end_is_the_end_only_where_one_is_due() {
    let answers = || vec![vec![stream("l", 1), chunk(&frame(1, "x")), end()]];
    let mut server = Scripted::start(answers()).await;
    let options = SubscribeOptions { follow: false, ..quick() };
    assert_eq!(told(&mut follow(&server, options)).await, ["1 x"]);
    assert_eq!(server.seen().await.target(), "/events?topic=a.*&envelope=json&follow=false");

    let server = Scripted::start(answers()).await;
    assert_eq!(told(&mut follow(&server, quick())).await, ["1 x", "disconnected"], "then it is asked, and says 204");

    let closed = "id: 1\nevent: tidelog.closed\ndata: {\"last\":1}\n\n";
    let mut server = Scripted::start(vec![vec![stream("l", 1), chunk(closed), end()]]).await;
    assert_eq!(told(&mut follow(&server, quick())).await, ["Closed { last: 1 }"]);
    server.seen().await;
    assert!(server.saw_no_more());
}

#[tokio::test]
async fn gaps_and_errors_are_told_and_the_cursor_of_a_gap_is_kept() {
    let gap = control(0, &Control::Gap { requested: 90, earliest: 3, reason: GapReason::Ahead });
    let error = control(3, &Control::Error { problem: r#"{"status":503,"code":"draining","detail":"d"}"# });
    let mut server = Scripted::start(vec![
        vec![stream("l", 5), chunk(&gap), Act::Close],
        vec![stream("l", 5), chunk(&(frame(3, "x") + "retry: 1\n" + &error)), Act::Close],
    ])
    .await;
    let options = SubscribeOptions { after: Some(90), ..quick() };
    let want = ["gap 90 3 ahead", "disconnected", "3 x", "error draining", "disconnected"];
    assert_eq!(told(&mut follow(&server, options)).await, want);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(server.seen().await.header("last-event-id").unwrap().to_owned());
    }
    assert_eq!(ids, ["90", "0", "3"]);
}

#[tokio::test]
async fn another_log_is_told_and_followed_from_its_beginning() {
    let mut server = Scripted::start(vec![
        vec![stream("old", 7), chunk(&frame(7, "x")), Act::Close],
        vec![stream("new", 9), chunk(&frame(8, "not from its beginning"))],
        vec![stream("new", 9), chunk(&frame(1, "y")), Act::Close],
    ])
    .await;
    let got = told(&mut follow(&server, quick())).await;
    assert_eq!(got, ["7 x", "disconnected", "log old new", "1 y", "disconnected"]);
    for want in [None, Some("7"), Some("0"), Some("1")] {
        assert_eq!(server.seen().await.header("last-event-id"), want);
    }
}

#[tokio::test]
async fn the_log_that_the_caller_names_is_compared_too() {
    let server =
        Scripted::start(vec![vec![stream("new", 9)], vec![stream("new", 9), chunk(&frame(1, "y")), end()]]).await;
    let options = SubscribeOptions { after: Some(7), log: Some("old".into()), follow: false, ..quick() };
    assert_eq!(told(&mut follow(&server, options)).await, ["log old new", "1 y"]);
}

#[tokio::test]
async fn silence_is_a_broken_connection() {
    // The first never answers, the second stops within its stream.
    let server = Scripted::start(vec![vec![], vec![stream("l", 1), chunk(&frame(1, "x"))]]).await;
    let options = SubscribeOptions { read_timeout: Duration::from_millis(400), ..quick() };
    assert_eq!(told(&mut follow(&server, options)).await, ["disconnected", "1 x", "disconnected"]);
}

#[tokio::test]
async fn it_gives_up_when_told_to() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(&format!("http://{closed}")).unwrap();
    let mut subscription = client.subscribe(&[], SubscribeOptions { failures_max: Some(2), ..quick() });
    let got = told(&mut subscription).await;
    assert_eq!(got[..2], ["disconnected", "disconnected"]);
    assert!(got.len() == 3 && got[2].starts_with("failed: cannot connect to 127.0.0.1:"), "{got:?}");
}

#[tokio::test]
async fn an_event_beyond_the_limit_is_final() {
    let server = Scripted::start(vec![vec![stream("l", 1), chunk(&frame(1, "x"))]]).await;
    let limits = Limits { line_bytes_max: 20, event_bytes_max: 20 };
    let got = told(&mut follow(&server, SubscribeOptions { limits, ..quick() })).await;
    assert_eq!(got, ["failed: the stream has a line of more than 20 bytes"]);
}

#[tokio::test]
async fn the_plain_wire_gives_its_frames() {
    let text = "retry: 1\nid: 1\nevent: t\ndata: a\ndata: b\n\n:\n".to_owned() + &live(2, "l");
    let mut server = Scripted::start(vec![vec![stream("l", 2), chunk(&text), Act::Close]]).await;
    let options = SubscribeOptions { wire: Wire::Plain, ..quick() };
    let mut subscription = Client::new(&server.url).unwrap().subscribe(&[Pattern::parse("a.b").unwrap()], options);
    let Some(Ok(Item::Event(event))) = subscription.next().await else { panic!() };
    assert_eq!((event.topic.as_deref(), event.data.as_str()), (Some("a.b"), "a\nb"));
    assert_eq!(subscription.frame(), b"retry: 1\nid: 1\nevent: t\ndata: a\ndata: b\n\n");
    assert_eq!(subscription.next().await.unwrap().unwrap(), Item::Live { tail: 2, log: "l".into() });
    assert_eq!(subscription.frame(), live(2, "l").as_bytes());
    assert_eq!(server.seen().await.target(), "/events?topic=a.b");
}

#[test]
fn waits_double_up_to_the_bound_with_full_jitter() {
    let (s, max) = (Duration::from_secs, Duration::from_secs(30));
    assert_eq!([1, 2, 3, 4, 5, 99].map(|n| backoff(s(2), n, max, 1.0)), [s(2), s(4), s(8), s(16), max, max]);
    assert_eq!(backoff(s(2), 3, max, 0.5), s(4));
    assert_eq!(backoff(s(2), 3, max, 0.0), s(0));
    assert_eq!(backoff(Duration::ZERO, 1, max, 1.0), BACKOFF_MIN);
    assert_eq!(backoff(Duration::from_millis(u64::MAX), 9, max, 1.0), max);
}
