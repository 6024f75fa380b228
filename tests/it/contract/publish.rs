//! Publishing: every form of it, and connections that do it one after another.

use serde_json::json;

use crate::support::TestServer;

#[test]
fn every_form_of_a_publish_is_answered_with_its_ids() {
    let server = TestServer::start(&[]);
    let post = |target: &str, content_type: Option<&str>, body: &str| {
        let headers: Vec<_> = content_type.map(|value| ("Content-Type", value)).into_iter().collect();
        let answer = server.ask("POST", target, &headers, body.as_bytes());
        assert_eq!((answer.status, answer.header("content-type")), (201, Some("application/json")), "{answer:?}");
        answer.json()
    };
    let text = "a\r\n\tb\0 é\u{1F30A}\n";
    assert_eq!(post("/topics/a", None, text), json!({"id": 1}));
    assert_eq!(post("/topics/a", Some("application/x-www-form-urlencoded"), "{\"not\" json"), json!({"id": 2}));
    assert_eq!(post("/topics/a?event=created&key=k%207", Some("text/plain"), ""), json!({"id": 3}));
    let spaced = " {\"n\" : 1.50e3 } ";
    assert_eq!(post("/topics/a", Some("Application/JSON; charset=utf-8"), spaced), json!({"id": 4}));
    let batch = "\n{\"data\":\"one\"}\r\n  \n{\"event\":\"t\",\"key\":\"k\",\"data\":{\"b\" : [1.0 , 2e400,\"x  y\"]}}\n{\"data\":null}";
    for (first, name) in ["application/x-ndjson", "application/ndjson", "application/jsonl"].into_iter().enumerate() {
        let first = 5 + 3 * first as u64;
        assert_eq!(post("/topics/b.c", Some(name), batch), json!({"first": first, "last": first + 2, "count": 3}));
    }
    assert_eq!(
        post("/topics/b", Some("application/x-ndjson"), "{\"data\":\"\"}"),
        json!({"first": 14, "last": 14, "count": 1})
    );
    let across = "{\"topic\":\"x.y\",\"data\":\"1\"}\n{\"data\":\"2\",\"topic\":\"z\",\"event\":\"message\"}\n";
    assert_eq!(post("/topics", Some("application/x-ndjson"), across), json!({"first": 15, "last": 16, "count": 2}));

    let got = server.everything("/events");
    assert_eq!(got.len(), 16);
    let without_time = |at: usize| {
        let mut event = got[at].clone();
        let time = event.as_object_mut().unwrap().remove("time").unwrap();
        let time = time.as_str().unwrap().to_owned();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        event
    };
    assert_eq!(without_time(0), json!({"id": 1, "topic": "a", "data": text}));
    assert_eq!(without_time(2), json!({"id": 3, "topic": "a", "event": "created", "key": "k 7", "data": ""}));
    assert_eq!(without_time(3), json!({"id": 4, "topic": "a", "data": spaced}));
    assert_eq!(without_time(4), json!({"id": 5, "topic": "b.c", "data": "one"}));
    let compact = "{\"b\":[1.0,2e400,\"x  y\"]}";
    assert_eq!(without_time(5), json!({"id": 6, "topic": "b.c", "event": "t", "key": "k", "data": compact}));
    assert_eq!(without_time(6)["data"], "null");
    assert_eq!(without_time(14), json!({"id": 15, "topic": "x.y", "data": "1"}));
    assert_eq!(without_time(15), json!({"id": 16, "topic": "z", "data": "2"}));
    let times: Vec<_> = got.iter().map(|event| event["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_publish_over_one_connection_after_another() {
    let server = TestServer::start(&[]);
    let mut conn = server.connect();
    for id in 1..=20 {
        let answer = conn.ask("POST", "/topics/a", &[], b"x").unwrap();
        assert_eq!(answer.json(), json!({"id": id}));
    }
    // Two at once, and a body in chunks.
    conn.request("POST", "/topics/a", &[], b"x").unwrap();
    conn.request("POST", "/topics/a", &[], b"y").unwrap();
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 21}));
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 22}));
    conn.send(
        "POST /topics/a HTTP/1.1\r\nHost: [::1]:9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    )
    .unwrap();
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 23}));
    // What curl does before it sends a large body.
    conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(conn.head().unwrap().status, 100);
    conn.send("de").unwrap();
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 24}));
    let data: Vec<_> = server.everything("/topics/a").into_iter().map(|event| event["data"].clone()).collect();
    assert_eq!(data[22..], [json!("abc"), json!("de")]);
}
