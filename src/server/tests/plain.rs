//! Small publishes: on the short way, on a lane, and on hyper's, which must not be told apart by their answers.

use super::*;

fn post(path: &str, more: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{more}\r\n{body}", body.len())
}

/// One answer with a small body; gives its head without the date, sorted, and its body.
async fn answer(stream: &mut TcpStream) -> (Vec<String>, String) {
    let text = until(stream, "\r\n\r\n").await;
    let (head, mut body) = text.split_once("\r\n\r\n").map(|(head, body)| (head, body.to_owned())).unwrap();
    let mut lines: Vec<_> = head.lines().filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect();
    lines.sort();
    let len: usize = lines.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    while body.len() < len {
        let mut chunk = [0; 4096];
        let n = in_time(stream.read(&mut chunk)).await.unwrap();
        assert!(n > 0);
        body.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
    }
    assert_eq!(body.len(), len, "more came than was asked for: {body}");
    (lines, body)
}

#[tokio::test]
async fn an_answer_does_not_tell_which_way_it_went() {
    let server = start(|_| ());
    // No plain request has this, and hyper passes over it.
    let hypers = "Expect: nothing\r\n";
    for (path, body) in [("/read", "hello"), ("/read", ""), ("/early", "hello"), ("/early", "")] {
        let mut plain = server.send(&post(path, "", body)).await;
        let first = answer(&mut plain).await;
        let mut other = server.send(&post(path, hypers, body)).await;
        assert_eq!(first, answer(&mut other).await, "{path}");
        // On a lane.
        for _ in 0..3 {
            plain.write_all(post(path, "", body).as_bytes()).await.unwrap();
            assert_eq!(answer(&mut plain).await, first, "{path}");
        }
        // Off it again, and on hyper's way for good.
        plain.write_all(post(path, hypers, body).as_bytes()).await.unwrap();
        assert_eq!(answer(&mut plain).await, first, "{path}");
        plain.write_all(post(path, "", body).as_bytes()).await.unwrap();
        assert_eq!(answer(&mut plain).await, first, "{path}");
        plain.write_all(get("/quiet").as_bytes()).await.unwrap();
        assert!(until(&mut plain, "\r\n\r\n").await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_lane_gives_a_connection_back_for_whatever_it_asks() {
    let server = start(|_| ());
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(post("/read", "", "hello").as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await.1, "5");
    }
    let large = "x".repeat(100_000);
    stream.write_all(post("/read", "", &large).as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "100000");
    stream.write_all(get("/early").as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "early");
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_comes_again_on_a_lane_is_looked_at_once() {
    let server = start(|_| ());
    let mut stream = server.connect().await;
    let ask = async |stream: &mut TcpStream, more: &str, body: &str| {
        stream.write_all(post("/known", more, body).as_bytes()).await.unwrap();
        answer(stream).await.1
    };
    assert_eq!(ask(&mut stream, "", "hello").await, "handled", "it may be the last one");
    for body in ["hello", "", "again", "a longer one"] {
        assert_eq!(ask(&mut stream, "", body).await, format!("head 1, {} bytes", body.len()));
    }
    // Behind its head, once this has been seen: the same lane has answered somebody else since.
    let mut other = server.connect().await;
    let late = post("/known", "", "late");
    stream.write_all(&late.as_bytes()[..late.len() - 4]).await.unwrap();
    for _ in 0..3 {
        other.write_all(post("/read", "", "x").as_bytes()).await.unwrap();
        assert_eq!(answer(&mut other).await.1, "1");
    }
    stream.write_all(b"late").await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "head 1, 4 bytes");
    // Another one is looked at, and remembered in its place.
    for (more, head) in [("X: 1\r\n", 2), ("X: 1\r\n", 2), ("X: 2\r\n", 3), ("X: 1\r\n", 4), ("", 5), ("", 5)] {
        assert_eq!(ask(&mut stream, more, "x").await, format!("head {head}, 1 bytes"));
    }
    // What is no repetition leaves what is known as it is.
    stream.write_all(post("/read", "", "hello").as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "5");
    assert_eq!(ask(&mut stream, "", "x").await, "head 5, 1 bytes");
    // A body that does not come is left to hyper, whose handler does not read this one.
    stream.write_all(&late.as_bytes()[..late.len() - 2]).await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "handled");
    server.stop().await;
}

/// As a body that is too large is refused by what its head declares, while it is still coming.
#[tokio::test]
async fn an_early_answer_reaches_a_publisher_who_is_on_a_lane() {
    let server = start(|_| ());
    for _ in 0..20 {
        let mut stream = server.connect().await;
        for _ in 0..3 {
            stream.write_all(post("/early", "", "hello").as_bytes()).await.unwrap();
            answer(&mut stream).await;
        }
        let head = "POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nthe beginning";
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await.1, "early");
    }
    server.stop().await;
}

#[tokio::test]
async fn requests_that_come_in_pieces_or_together_are_answered_in_order() {
    for lanes in [0, 4] {
        let server = start(|options| options.publish_threads = lanes);
        let mut stream = server.connect().await;
        let together: String = (0..4).map(|n| post("/read", "", &"x".repeat(n))).collect();
        stream.write_all(together.as_bytes()).await.unwrap();
        let mut text = String::new();
        while text.matches("HTTP/1.1 200 OK").count() < 4 || !text.ends_with("\r\n\r\n3") {
            text.push_str(&until(&mut stream, "\n").await);
        }
        let bodies: Vec<_> = text.split("HTTP/1.1 200 OK").skip(1).filter_map(|one| one.chars().last()).collect();
        assert_eq!(bodies, ['0', '1', '2', '3']);
        for byte in post("/read", "", "hello").bytes() {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(answer(&mut stream).await.1, "5");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_body_that_is_late_is_waited_for_all_the_same() {
    let server = start(|_| ());
    let mut stream = server.connect().await;
    let whole = post("/read", "", "hello");
    stream.write_all(&whole.as_bytes()[..whole.len() - 2]).await.unwrap();
    // Until it is hyper's: longer than the short way waits.
    let early = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut [0; 16])).await;
    assert!(early.is_err(), "nothing is answered yet");
    stream.write_all(b"lo").await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "5");
    server.stop().await;
}

#[tokio::test]
async fn a_publisher_that_is_silent_is_closed_and_one_that_is_idle_ends_with_the_server() {
    let server = start(|options| options.header_timeout = Duration::from_millis(300));
    for requests in [0, 1, 3] {
        let mut stream = server.connect().await;
        for _ in 0..requests {
            stream.write_all(post("/read", "", "hello").as_bytes()).await.unwrap();
            answer(&mut stream).await;
        }
        stream.write_all(b"POST /re").await.unwrap();
        assert_eq!(to_end(&mut stream).await, b"");
    }
    server.stop().await;
    let server = start(|_| ());
    let mut idle = Vec::new();
    for requests in [1, 3] {
        let mut stream = server.connect().await;
        for _ in 0..requests {
            stream.write_all(post("/read", "", "hello").as_bytes()).await.unwrap();
            answer(&mut stream).await;
        }
        idle.push(stream);
    }
    server.stop().await;
    for mut stream in idle {
        assert_eq!(to_end(&mut stream).await, b"");
    }
}

#[tokio::test]
async fn what_does_not_end_on_a_lane_is_cut_off_in_the_end() {
    let server = start(|options| options.drain_timeout = Duration::from_millis(200));
    let mut stream = server.connect().await;
    for _ in 0..2 {
        stream.write_all(post("/read", "", "hello").as_bytes()).await.unwrap();
        answer(&mut stream).await;
    }
    stream.write_all(post("/hang", "", "hello").as_bytes()).await.unwrap();
    server.stop().await;
    assert_eq!(to_end(&mut stream).await, b"");
}

/// One request, and which thread answers it.
async fn who(stream: &mut TcpStream) -> String {
    stream.write_all(post("/who", "", "hello").as_bytes()).await.unwrap();
    answer(stream).await.1
}

async fn until_it_is(stream: &mut TcpStream, thread: &str) {
    in_time(async { while who(stream).await != thread {} }).await;
}

#[tokio::test]
async fn while_a_lanes_thread_is_away_another_one_answers_and_gives_way_when_it_is_back() {
    let fake = Fake::default();
    let server = start_with(fake.clone(), |options| options.publish_threads = 1);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        who(&mut stream).await;
        assert_eq!(who(&mut stream).await, "lane-0");
        streams.push(stream);
    }
    let mut beside = server.connect().await;
    who(&mut beside).await;
    for _ in 0..2 {
        let (goes_on, answer) = std::sync::mpsc::channel();
        *fake.disk.answer.lock() = Some(answer);
        fake.disk.asked.notify_one();
        for stream in &mut streams {
            // The first one may still be answered before its thread is away.
            until_it_is(stream, "lane-0-aside").await;
            assert_eq!(who(stream).await, "lane-0-aside");
        }
        // One that comes to the lane now.
        assert_eq!(who(&mut beside).await, "lane-0-aside");
        goes_on.send(()).unwrap();
        for stream in streams.iter_mut().chain([&mut beside]) {
            until_it_is(stream, "lane-0").await;
        }
        // And stays: for longer than it takes to be missed.
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(1_500) {
            assert_eq!(who(&mut beside).await, "lane-0");
        }
    }
    // The server ends while the thread is away: its connections do, and the thread when it comes back.
    let (goes_on, gone) = std::sync::mpsc::channel();
    *fake.disk.answer.lock() = Some(gone);
    fake.disk.asked.notify_one();
    until_it_is(&mut beside, "lane-0-aside").await;
    let ((), ()) = tokio::join!(server.stop(), async {
        for stream in streams.iter_mut().chain([&mut beside]) {
            assert_eq!(to_end(stream).await, b"");
        }
        goes_on.send(()).unwrap();
    });
}
