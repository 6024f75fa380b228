//! Publishing: one event, or a batch as JSON lines.
//!
//! Must not know how connections are made or kept.

use bytes::Bytes;
use form_urlencoded::Serializer;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};

use super::connect::problem;
use super::{Client, Error};
use crate::event::{EventId, EventType, Key, NewEvent};
use crate::topic::Topic;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The ids that a publish was given: consecutive, and durable as the server's configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub first: EventId,
    pub last: EventId,
    pub count: u64,
}

impl Client {
    /// Publishes one event; its data is stored byte for byte.
    ///
    /// With an idempotency key (at most 128 bytes), the same call may be made again when the outcome of this one is unknown.
    ///
    /// # Errors
    /// [`Error::Refused`] with the server's reason; otherwise see [`Error::outcome_unknown`].
    pub async fn publish(&self, event: NewEvent, idempotency_key: Option<&str>) -> Result<Ack, Error> {
        let NewEvent { topic, event, key, data } = event;
        // In a block: what is alive across the await below has to be Send, so that a publish can be spawned.
        let query = {
            let mut query = Serializer::new(String::new());
            let names = [("event", event.as_ref().map(EventType::as_str)), ("key", key.as_ref().map(Key::as_str))];
            query.extend_pairs(names.into_iter().filter_map(|(name, value)| Some((name, value?))));
            query.finish()
        };
        let mark = if query.is_empty() { "" } else { "?" };
        self.post(&format!("/topics/{topic}{mark}{query}"), "text/plain; charset=utf-8", data.into(), idempotency_key)
            .await
    }

    /// Publishes a batch, all of it or none: a JSON object a line, `{"event"?, "key"?, "data"}`. With `None` for the topic, each
    /// line names its own in `"topic"`.
    ///
    /// With an idempotency key (at most 128 bytes), the same call may be made again when the outcome of this one is unknown.
    ///
    /// # Errors
    /// [`Error::Refused`] with the server's reason; otherwise see [`Error::outcome_unknown`].
    pub async fn publish_lines(
        &self,
        topic: Option<&Topic>,
        lines: impl Into<Bytes>,
        idempotency_key: Option<&str>,
    ) -> Result<Ack, Error> {
        let path = topic.map_or_else(|| "/topics".to_owned(), |topic| format!("/topics/{topic}"));
        self.post(&path, "application/x-ndjson", lines.into(), idempotency_key).await
    }

    async fn post(
        &self,
        path: &str,
        content_type: &'static str,
        body: Bytes,
        idempotency_key: Option<&str>,
    ) -> Result<Ack, Error> {
        let mut request = self.target.request(Method::POST, path, body)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(key) = idempotency_key {
            let key = HeaderValue::from_str(key).map_err(|_| Error::IdempotencyKey(key.to_owned()))?;
            request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        }
        let (status, headers, body) = self.call(request).await?;
        read_ack(status, &headers, &body)
    }
}

fn read_ack(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Ack, Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Answer {
        Batch { first: EventId, last: EventId, count: u64 },
        One { id: EventId },
    }
    if !status.is_success() {
        return Err(if status.is_redirection() {
            Error::NotTidelog(format!("a redirection ({status})"))
        } else {
            Error::Refused(problem(status, headers, body))
        });
    }
    match serde_json::from_slice(body) {
        Ok(Answer::Batch { first, last, count }) => Ok(Ack { first, last, count }),
        Ok(Answer::One { id }) => Ok(Ack { first: id, last: id, count: 1 }),
        Err(_) => Err(Error::NotTidelog(format!("{status} without the ids of what was published"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{Act, PATIENCE, Scripted, answer, problem};
    use super::super::{Problem, Timeouts};
    use super::*;

    fn event(topic: &str, data: &str) -> NewEvent {
        NewEvent { topic: Topic::parse(topic).unwrap(), event: None, key: None, data: data.into() }
    }

    fn created(body: &str) -> Vec<Act> {
        vec![answer("201 Created", "application/json", body)]
    }

    #[tokio::test]
    async fn events_and_batches_go_over_one_connection() {
        let batch = || created(r#"{"first":43,"last":44,"count":2}"#);
        let mut server = Scripted::start(vec![created(r#"{"id":42}"#), batch(), batch()]).await;
        let client = Client::new(&server.url).unwrap();

        let typed = NewEvent {
            event: EventType::parse("a b&c").unwrap(),
            key: Some(Key::parse("ü").unwrap()),
            ..event("orders.@eu=1~", "x\r\ny")
        };
        assert_eq!(client.publish(typed, None).await.unwrap(), Ack { first: 42, last: 42, count: 1 });
        let seen = server.seen().await;
        assert_eq!(seen.target(), "/topics/orders.@eu=1~?event=a+b%26c&key=%C3%BC");
        assert_eq!(seen.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(seen.header("idempotency-key"), None);
        assert_eq!((seen.connection, seen.body.as_str()), (0, "x\r\ny"));

        let topic = Topic::parse("t").unwrap();
        let lines = "{\"data\":1}\n{\"data\":2}\n";
        let ack = client.publish_lines(Some(&topic), lines, Some("k1")).await.unwrap();
        assert_eq!(ack, Ack { first: 43, last: 44, count: 2 });
        let seen = server.seen().await;
        assert_eq!((seen.target(), seen.connection, seen.body.as_str()), ("/topics/t", 0, lines));
        assert_eq!(seen.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(seen.header("idempotency-key"), Some("k1"));

        client.publish_lines(None, "{\"topic\":\"t\",\"data\":1}", None).await.unwrap();
        let seen = server.seen().await;
        assert_eq!((seen.target(), seen.connection), ("/topics", 0));
    }

    #[tokio::test]
    async fn a_refusal_says_status_code_and_detail() {
        let server = Scripted::start(vec![vec![problem("409 Conflict", "topic_closed", "it was closed")]]).await;
        let error = Client::new(&server.url).unwrap().publish(event("t", ""), None).await.unwrap_err();
        assert!(!error.outcome_unknown());
        let Error::Refused(problem) = &error else { panic!("{error:?}") };
        let want =
            Problem { status: 409, code: "topic_closed".into(), detail: "it was closed".into(), retry_after: None };
        assert_eq!(*problem, want);
        assert_eq!(error.to_string(), "the server refused: it was closed (409 topic_closed)");
    }

    #[tokio::test]
    async fn what_the_contract_calls_unknown_is_unknown() {
        let answers = vec![
            vec![problem("503 Service Unavailable", "storage_failed", "d")],
            created("{}"),
            vec![answer("302 Found", "text/html", "")],
        ];
        let server = Scripted::start(answers).await;
        let client = Client::new(&server.url).unwrap();
        for _ in 0..3 {
            let error = client.publish(event("t", ""), None).await.unwrap_err();
            assert!(error.outcome_unknown(), "{error}");
        }
    }

    #[tokio::test]
    async fn a_publish_can_be_spawned() {
        let server = Scripted::start(vec![created(r#"{"id":7}"#), created(r#"{"first":8,"last":8,"count":1}"#)]).await;
        let client = Client::new(&server.url).unwrap();
        let publishing = tokio::spawn(async move {
            let one = client.publish(event("t", "x"), None).await.unwrap();
            let lines = client.publish_lines(None, "{}", None).await.unwrap();
            (one.first, lines.last)
        });
        assert_eq!(publishing.await.unwrap(), (7, 8));
    }

    #[tokio::test]
    async fn what_was_sent_is_not_sent_again() {
        let mut server = Scripted::start(vec![vec![Act::Close], created(r#"{"id":2}"#)]).await;
        let client = Client::new(&server.url).unwrap();
        let error = client.publish(event("t", "one"), None).await.unwrap_err();
        assert!(matches!(error, Error::Broken(_)) && error.outcome_unknown(), "{error:?}");
        assert_eq!(server.seen().await.body, "one");
        assert!(server.saw_no_more());
        client.publish(event("t", "two"), None).await.unwrap();
        assert_eq!(server.seen().await.body, "two");
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_in_between_is_replaced() {
        let mut server =
            Scripted::start(vec![[created(r#"{"id":1}"#), vec![Act::Close]].concat(), created(r#"{"id":2}"#)]).await;
        let client = Client::new(&server.url).unwrap();
        client.publish(event("t", ""), None).await.unwrap();
        // Until hyper has noticed; before, the outcome of a publish would be unknown, which is another test.
        tokio::time::timeout(PATIENCE, async {
            while client.idle.lock().iter().any(|idle| !idle.is_closed()) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        client.publish(event("t", ""), None).await.unwrap();
        assert_eq!([server.seen().await.connection, server.seen().await.connection], [0, 1]);
    }

    #[tokio::test]
    async fn an_answer_is_waited_for_no_longer_than_told() {
        let server = Scripted::start(vec![vec![]]).await;
        let timeouts = Timeouts { answer: Duration::from_millis(20), ..Timeouts::default() };
        let client = Client::new(&server.url).unwrap().with_timeouts(timeouts);
        let error = client.publish(event("t", ""), None).await.unwrap_err();
        assert!(error.outcome_unknown() && error.to_string().contains("20ms"), "{error}");
    }

    #[tokio::test]
    async fn no_server_is_no_unknown_outcome() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&format!("http://{closed}")).unwrap();
        let error = client.publish(event("t", ""), None).await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }) && !error.outcome_unknown(), "{error:?}");
        let error = client.publish(event("t", ""), Some("\n")).await.unwrap_err();
        assert!(matches!(error, Error::IdempotencyKey(_)), "{error:?}");
    }
}
