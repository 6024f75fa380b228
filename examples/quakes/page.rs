//! A static server for the page's five files, all of them inside this program.
//!
//! What holds: it answers nothing but these files, and the page may load nothing from anywhere else. Must not know quakes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// A browser opens six connections to a host: this is for ten of them.
const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Path, content type, content.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/quakes.css", "text/css; charset=utf-8", include_str!("quakes.css")),
    ("/quakes.js", "text/javascript; charset=utf-8", include_str!("quakes.js")),
    ("/draw.js", "text/javascript; charset=utf-8", include_str!("draw.js")),
    ("/coast.js", "text/javascript; charset=utf-8", include_str!("coast.js")),
];

/// Nothing from elsewhere but the stream, which comes from whatever server the URL names.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src http: https:";

/// Serves until it is dropped; `tidelog` is the server that the page is sent to.
pub async fn serve(listener: TcpListener, tidelog: &str) {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("server", tidelog).finish();
    let query: Arc<str> = query.into();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: it passes as connections end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let query = Arc::clone(&query);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &query);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            // A browser that goes away in the middle is no matter.
            drop(http.serve_connection(TokioIo::new(stream), service).await);
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, query: &str) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let mut response = Response::new(Full::default());
    let mut header = |name, value: &str| {
        let value = value.parse().expect("these are fixed texts, and a query that is percent-encoded");
        response.headers_mut().insert(name, value);
    };
    if path == "/" && request.uri().query().is_none() {
        // Which server to follow is in the URL, where a reader can see and change it.
        header(LOCATION, &format!("/?{query}"));
        *response.status_mut() = StatusCode::FOUND;
        return response;
    }
    let Some((_, content_type, content)) = FILES.iter().find(|(name, ..)| *name == path) else {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    header(CONTENT_TYPE, content_type);
    header(CONTENT_SECURITY_POLICY, POLICY);
    header(CACHE_CONTROL, "no-cache");
    *response.body_mut() = Full::new(Bytes::from_static(content.as_bytes()));
    response
}
