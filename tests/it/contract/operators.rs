//! What browsers of other origins and operators are told.

use super::SSE;
use crate::support::TestServer;

#[test]
fn origins_are_judged_and_preflights_answered() {
    let server = TestServer::start(&["cors.allow_origins=https://app.example"]);
    let port = server.addr.port();
    let own = format!("localhost:{port}");
    for origin in [format!("http://{own}"), format!("https://{own}")] {
        let answer = server.ask("POST", "/topics/a", &[("Host", &own), ("Origin", &origin)], b"x");
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (201, None), "{origin}");
    }
    let allowed = ("Origin", "https://app.example");
    let answer = server.ask("POST", "/topics/a", &[allowed], b"x");
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for name in
        ["Tidelog-Earliest", "Tidelog-Tail", "Tidelog-Log", "Tidelog-Last", "Last-Event-ID", "Idempotency-Replayed"]
    {
        assert!(exposed.contains(name), "{exposed}");
    }
    assert_eq!(
        server.stream("/topics/a", &[allowed]).head.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    let problem = server.get("/topics/a..b", &[allowed]);
    assert_eq!((problem.status, problem.header("access-control-allow-origin")), (400, Some("https://app.example")));
    let preflight = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "DELETE"),
            ("Access-Control-Request-Headers", "content-type, last-event-id"),
        ];
        server.ask("OPTIONS", "/topics/a", &headers, b"")
    };
    let answer = preflight("https://app.example");
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    let methods = answer.header("access-control-allow-methods").unwrap();
    assert!(["GET", "POST", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    let headers = answer.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
    for name in ["content-type", "last-event-id", "idempotency-key", "if-match", "if-none-match", "cache-control"] {
        assert!(headers.contains(name), "{headers}");
    }
    assert_eq!(preflight("https://evil.example").status, 403);
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8080"] {
        assert_eq!(server.get("/healthz", &[("Host", host)]).status, 200, "{host}");
    }
    let options = server.ask("OPTIONS", "/topics/a/retention", &[], b"");
    assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, PUT, DELETE, OPTIONS")));
}

#[test]
fn operators_see_health_counts_and_the_description() {
    let server = TestServer::start(&[]);
    server.publish("a", "four");
    let watching = server.stream("/topics/a", &[SSE]);
    assert_eq!(server.get("/healthz", &[]).status, 200);
    assert_eq!(server.get("/readyz", &[]).status, 200);
    let metrics = server.get("/metrics", &[]).body;
    for line in [
        "tidelog_events_appended_total 1",
        "tidelog_bytes_appended_total 4",
        "tidelog_tail 1",
        "tidelog_subscribers 1",
        "tidelog_log_writable 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    drop(watching);
    let answer = server.get("/openapi.json", &[]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.json()["openapi"].is_string() && answer.json()["paths"]["/topics/{topic}"].is_object());
    assert_eq!(server.get("/", &[]).header("content-type"), Some("text/html; charset=utf-8"));
    assert!(server.said().is_empty() || !server.said().contains("panicked"));
}
