//! A server for the commands' tests: it answers the n-th request with the n-th text, and closes the connection.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Longer than any step of a test takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Serves `answers`; beyond them, 204. Gives the URL and the requests as they come, head and body.
pub async fn serve(answers: Vec<String>) -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (saw, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (mut request, mut length) = (String::new(), 0);
            while stream.read_line(&mut request).await.unwrap() > 2 {
                let line = request.lines().last().unwrap_or_default().to_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |text| text.parse().unwrap());
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            request += &String::from_utf8(body).unwrap();
            // A test that has seen enough takes no more.
            let _ = saw.send(request);
            let answer = answers.next().unwrap_or_else(|| "HTTP/1.1 204 No Content\r\n\r\n".into());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, seen)
}

/// An answer with a body, after which the connection is closed.
pub fn answer(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}
