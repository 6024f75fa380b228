//! The wire under a whole server: the real API over a log in memory, and clients that behave well, badly, or not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::event::{Event, NewEvent};
use crate::http::{self, Api};
use crate::log::{self, Log};
use crate::server::{Options, Server};
use crate::store::Store as _;
use crate::store::model::ModelStore;
use crate::topic::Topic;

/// Every wait in here is over long before this; a test that reaches it has failed.
const TOO_LONG: Duration = Duration::from_secs(60);

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TOO_LONG, future).await.expect("it takes too long")
}

struct Running {
    address: SocketAddr,
    log: Log,
    store: Arc<ModelStore>,
    connections: Gauge,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<()>,
}

struct Setting {
    server: Options,
    heartbeat: Duration,
    /// Events that are in the log before it is opened, and so not in the ring.
    stored: u64,
}

fn start(change: impl FnOnce(&mut Setting)) -> Running {
    let server = Options { listen: SocketAddr::from(([127, 0, 0, 1], 0)), stream_threads: 2, ..Options::default() };
    let mut setting = Setting { server, heartbeat: Duration::from_secs(60), stored: 0 };
    change(&mut setting);
    let store = Arc::new(ModelStore::default());
    let topic = Topic::parse("a").unwrap();
    let event = NewEvent { topic, event: None, key: None, data: "stored".into() };
    let events: Vec<_> = (1..=setting.stored).map(|id| Event::new(id, 1, event.clone())).collect();
    store.append(&events).unwrap();
    let options = log::Options { heartbeat: setting.heartbeat, ..log::Options::new("") };
    let log = Log::over(store.clone(), options).unwrap();
    let api = Api::new(log.clone(), http::Options { heartbeat: setting.heartbeat, ..http::Options::default() });
    let connections = setting.server.connections.clone();
    let server = Server::bind(setting.server).unwrap();
    let address = server.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(server.run(api, async { drop(stopped.await) }));
    Running { address, log, store, connections, stop: Some(stop), ended }
}

impl Running {
    async fn publish(&self, topic: &str, data: &str, count: usize) -> u64 {
        let event = NewEvent { topic: Topic::parse(topic).unwrap(), event: None, key: None, data: data.into() };
        self.log.append(vec![event; count]).await.unwrap().last
    }

    async fn connect(&self, receive_buffer: u32) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        if receive_buffer > 0 {
            socket.set_recv_buffer_size(receive_buffer).unwrap();
        }
        in_time(socket.connect(self.address)).await.unwrap()
    }

    async fn get(&self, target: &str) -> Client {
        self.get_with(target, "", 0).await
    }

    async fn get_with(&self, target: &str, headers: &str, receive_buffer: u32) -> Client {
        let mut client = Client { socket: self.connect(receive_buffer).await, raw: Vec::new(), body: Vec::new() };
        client.ask(target, headers).await;
        client.head().await;
        client
    }

    fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    async fn stop(mut self) {
        self.begin_stop();
        in_time(&mut self.ended).await.unwrap();
        self.log.close().await;
        assert_eq!((self.connections.get(), self.subscribers()), (0, 0), "nothing is left behind");
    }

    fn subscribers(&self) -> i64 {
        self.log.metrics().subscribers.get()
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let waited = tokio::time::timeout(TOO_LONG, async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {} {}", self.connections.get(), self.subscribers());
    }
}

/// How a body ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    LastChunk,
    BrokenOff,
    Reset,
}

/// A client that decodes chunks as strictly as it can.
struct Client {
    socket: TcpStream,
    raw: Vec<u8>,
    body: Vec<u8>,
}

impl Client {
    async fn ask(&mut self, target: &str, headers: &str) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        in_time(self.socket.write_all(request.as_bytes())).await.unwrap();
    }

    async fn head(&mut self) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.raw, b"\r\n\r\n") {
                let head = String::from_utf8(self.raw.drain(..at + 4).collect()).unwrap();
                assert!(
                    head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("transfer-encoding: chunked"),
                    "{head}"
                );
                return head;
            }
            assert!(self.more().await.unwrap() > 0, "the end came within the head");
        }
    }

    async fn more(&mut self) -> std::io::Result<usize> {
        self.raw.reserve(64 << 10);
        in_time(self.socket.read_buf(&mut self.raw)).await
    }

    /// Moves whole chunks from `raw` to `body`; true at the last one.
    fn decode(&mut self) -> bool {
        let mut at = 0;
        let mut last = false;
        while !last && let Some(line) = memchr::memmem::find(&self.raw[at..], b"\r\n") {
            let size = std::str::from_utf8(&self.raw[at..at + line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("{size:?} is no size"));
            let from = at + line + 2;
            if self.raw.len() < from + size + 2 {
                break;
            }
            assert_eq!(&self.raw[from + size..from + size + 2], b"\r\n");
            self.body.extend_from_slice(&self.raw[from..from + size]);
            at = from + size + 2;
            last = size == 0;
        }
        self.raw.drain(..at);
        last
    }

    /// Reads until the body holds `mark`.
    async fn until(&mut self, mark: &str) {
        let mut looked = 0;
        loop {
            assert!(!self.decode(), "the proper end came before {mark:?}");
            if memchr::memmem::find(&self.body[looked..], mark.as_bytes()).is_some() {
                return;
            }
            looked = self.body.len().saturating_sub(mark.len());
            assert!(self.more().await.unwrap() > 0, "the end came before {mark:?}");
        }
    }

    async fn read_to_end(&mut self) -> Ending {
        loop {
            if self.decode() {
                return Ending::LastChunk;
            }
            match self.more().await {
                Ok(0) => {
                    assert!(self.raw.is_empty(), "it breaks off between chunks");
                    return Ending::BrokenOff;
                }
                Ok(_) => {}
                Err(_) => return Ending::Reset,
            }
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The ids of the events, without those of control events.
    fn ids(&self) -> Vec<u64> {
        let frames = self.text().split("\n\n").filter(|frame| !frame.contains("event: tidelog."));
        frames.filter_map(|frame| Some(frame.split("id: ").nth(1)?.lines().next()?.parse().unwrap())).collect()
    }
}

fn all(first: u64, last: u64) -> Vec<u64> {
    (first..=last).collect()
}

#[tokio::test]
async fn events_come_in_order_first_from_disk_then_live_on_either_path() {
    for threads in [0, 1, 2] {
        let server = start(|setting| (setting.server.stream_threads, setting.stored) = (threads, 500));
        let mut client = server.get("/topics/a?from=earliest").await;
        client.until("tidelog.live").await;
        assert_eq!(client.ids(), all(1, 500));
        for _ in 0..50 {
            server.publish("a", "new", 3).await;
            server.publish("b", "not this", 1).await;
        }
        let last = server.publish("a", "last\nof all", 1).await;
        client.until("data: last\ndata: of all\n\n").await;
        let expected: Vec<_> = all(1, last).into_iter().filter(|id| *id <= 500 || (id - 500) % 4 != 0).collect();
        assert_eq!(client.ids(), expected);
        assert!(client.text().starts_with("retry: "));
        server.stop().await;
    }
}

#[tokio::test]
async fn each_of_many_gets_all_of_its_own_once_while_some_come_and_go() {
    let server = Arc::new(start(|_| ()));
    let mut readers = Vec::new();
    for n in 0..200 {
        let server = server.clone();
        readers.push(tokio::spawn(async move {
            let target = if n % 4 == 0 { "/events".to_owned() } else { format!("/topics/t{}", n % 8) };
            let mut client = server.get_with(&target, "Last-Event-ID: 0\r\n", if n % 3 == 0 { 4096 } else { 0 }).await;
            if n % 5 == 0 {
                client.until("id: 9").await;
                return None;
            }
            client.until("data: the end").await;
            Some((n, client.ids()))
        }));
    }
    for n in 0..2_000 {
        server.publish(&format!("t{}", n % 8), "x", 1).await;
    }
    for n in 0..8 {
        server.publish(&format!("t{n}"), "the end", 1).await;
    }
    for reader in readers {
        let Some((n, ids)) = in_time(reader).await.unwrap() else { continue };
        let wanted = |id: &u64| if n % 4 == 0 { *id <= 2_001 } else { (id - 1) % 8 == n % 8 };
        let expected: Vec<_> = all(1, 2_008).into_iter().filter(wanted).collect();
        let read = if n % 4 == 0 { &ids[..2_001] } else { &ids[..] };
        assert_eq!(read, expected, "{n}");
    }
    server.until("all have gone", |server| server.subscribers() == 0 && server.connections.get() == 0).await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test]
async fn a_slow_reader_falls_back_to_the_log_and_catches_up_exactly() {
    let server = start(|_| ());
    let mut slow = server.get_with("/topics/a", "", 4096).await;
    slow.until("tidelog.live").await;
    let mut quick = server.get("/topics/a").await;
    let data = "x".repeat(100_000);
    // More than the ring and all buffers hold.
    let publish = async {
        for _ in 0..100 {
            server.publish("a", &data, 10).await;
        }
        server.publish("a", "the end", 1).await
    };
    let ((), last) = tokio::join!(quick.until("data: the end"), publish);
    assert_eq!(quick.ids(), all(1, last));
    slow.until("data: the end").await;
    assert_eq!(slow.ids(), all(1, last));
    assert!(server.log.metrics().catchup_reads.get() > 100, "it read from the log");
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed_and_one_that_waits_is_not() {
    let server = start(|setting| setting.server.write_timeout = Duration::from_millis(300));
    let mut quiet = server.get("/topics/quiet").await;
    quiet.until("tidelog.live").await;
    let stalled = server.get_with("/topics/a", "", 4096).await;
    server.publish("a", &"x".repeat(1_000_000), 20).await;
    // By its write timeout or, as that is the kernel's too, by the kernel, which sends no reset.
    server.until("the quiet one is left", |server| server.subscribers() == 1 && server.connections.get() == 1).await;
    drop(stalled);
    server.publish("quiet", "still there", 1).await;
    quiet.until("still there").await;
    server.stop().await;
}

#[tokio::test]
async fn one_that_reads_at_a_crawl_is_not_closed() {
    let server = start(|setting| setting.server.write_timeout = Duration::from_millis(400));
    let mut slow = server.get_with("/topics/a", "", 200_000).await;
    server.publish("a", &"x".repeat(1_000_000), 10).await;
    let begun = std::time::Instant::now();
    // Room is made in small steps, and for longer than the timeout not so much that the kernel would tell of it.
    while begun.elapsed() < Duration::from_secs(2) {
        let mut some = [0; 16 << 10];
        let n = in_time(slow.socket.read(&mut some)).await.unwrap();
        assert!(n > 0);
        slow.raw.extend_from_slice(&some[..n]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.publish("a", "the end", 1).await;
    slow.until("the end").await;
    assert_eq!(slow.ids(), all(1, 11));
    server.stop().await;
}

#[tokio::test]
async fn clients_that_leave_in_any_way_are_let_go() {
    let server = start(|_| ());
    for round in 0..20 {
        let mut clients = Vec::new();
        for n in 0..100 {
            let mut client = Client { socket: server.connect(0).await, raw: Vec::new(), body: Vec::new() };
            client.ask("/topics/a?from=earliest", "").await;
            match n % 4 {
                // Gone before it has an answer.
                0 => continue,
                1 => client.socket.shutdown().await.unwrap(),
                2 => {
                    client.head().await;
                    client.socket.shutdown().await.unwrap();
                }
                _ => {
                    client.until_begun().await;
                    client.socket.set_zero_linger().unwrap();
                    continue;
                }
            }
            clients.push(client);
        }
        server.publish("a", "x", 1).await;
        for mut client in clients {
            // A client that says that it sends no more has gone, here as with hyper.
            assert_ne!(client.raw_to_end().await, None, "{round}");
        }
    }
    server.until("all have gone", |server| server.subscribers() == 0 && server.connections.get() == 0).await;
    server.stop().await;
}

impl Client {
    async fn until_begun(&mut self) {
        self.head().await;
        self.until("retry: ").await;
    }

    /// The length of all that still comes; a reset ends it too.
    async fn raw_to_end(&mut self) -> Option<usize> {
        loop {
            match self.more().await {
                Ok(0) | Err(_) => return Some(self.raw.len()),
                Ok(_) => {}
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_does_not_follow_ends_properly_and_its_connection_goes_on() {
    let server = start(|_| ());
    server.publish("a", &"x".repeat(1_000), 1_000).await;
    let target = "/topics/a?from=earliest&follow=false";
    let mut client = server.get(target).await;
    assert_eq!(client.read_to_end().await, Ending::LastChunk);
    assert_eq!(client.ids(), all(1, 1_000));
    assert!(client.text().contains("tidelog.live"));
    // Again on the same connection, then twice at once.
    for requests in [1, 2] {
        for _ in 0..requests {
            client.ask(target, "").await;
        }
        for _ in 0..requests {
            client.body.clear();
            client.head().await;
            assert_eq!(client.read_to_end().await, Ending::LastChunk);
            assert_eq!(client.ids(), all(1, 1_000));
        }
    }
    assert_eq!(server.connections.get(), 1);
    let mut last = server.get_with(target, "Connection: close\r\n", 0).await;
    assert_eq!(last.read_to_end().await, Ending::LastChunk);
    assert_eq!(in_time(last.socket.read(&mut [0])).await.unwrap(), 0, "it was asked to close");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_breaks_off_with_its_last_bytes() {
    let server = start(|setting| setting.stored = 10);
    server.store.set_unreadable(true);
    // Whatever its client sends meanwhile.
    let mut client = server.get("/topics/a?from=earliest").await;
    drop(client.socket.write_all(&[b'x'; 10_000]).await);
    assert_eq!(client.read_to_end().await, Ending::BrokenOff);
    assert!(client.text().contains("id: 0\nevent: tidelog.error\ndata: {"), "{}", client.text());
    assert!(client.text().contains("\"code\":\"storage_failed\"") && client.text().ends_with("}\n\n"));
    drop(client);
    server.store.set_unreadable(false);
    server.stop().await;
}

#[tokio::test]
async fn a_drain_tells_all_of_them_also_one_with_a_backlog() {
    let mut server = start(|_| ());
    let mut quiet = server.get("/topics/b").await;
    let mut talking = server.get("/topics/b").await;
    talking.socket.write_all(&vec![b'x'; 100_000]).await.unwrap();
    let mut slow = server.get_with("/topics/a", "", 4096).await;
    slow.until("tidelog.live").await;
    let last = server.publish("a", &"x".repeat(100_000), 200).await;
    quiet.until("tidelog.live").await;
    server.until("it has begun", |server| server.log.metrics().bytes_delivered.get() > 1_000_000).await;
    server.begin_stop();
    for client in [&mut quiet, &mut talking] {
        assert_eq!(client.read_to_end().await, Ending::BrokenOff);
        assert!(client.text().contains(&format!("\nid: {last}\nevent: tidelog.error\n")), "{}", client.text());
        assert!(client.text().contains("\"code\":\"draining\"") && client.text().ends_with("}\n\n"));
    }
    assert_eq!(slow.read_to_end().await, Ending::BrokenOff);
    let ids = slow.ids();
    let cursor = *ids.last().unwrap();
    assert!(cursor < last, "its backlog is not sent to the end");
    assert_eq!(ids, all(1, cursor));
    assert!(slow.text().contains(&format!("\nid: {cursor}\nevent: tidelog.error\n")));
    drop((quiet, talking, slow));
    server.stop().await;
}

#[tokio::test]
async fn a_drain_waits_for_one_that_takes_nothing_no_longer_than_it_may() {
    let mut server = start(|setting| setting.server.drain_timeout = Duration::from_millis(300));
    let mut stalled = server.get_with("/topics/a", "", 4096).await;
    stalled.until("tidelog.live").await;
    server.publish("a", &"x".repeat(1_000_000), 20).await;
    server.until("it is stalled", |server| server.log.metrics().bytes_delivered.get() > 1_000_000).await;
    server.begin_stop();
    in_time(&mut server.ended).await.unwrap();
    assert_ne!(stalled.read_until_any_end().await, Ending::LastChunk);
    assert_eq!((server.connections.get(), server.subscribers()), (0, 0));
    server.log.close().await;
}

impl Client {
    async fn read_until_any_end(&mut self) -> Ending {
        loop {
            if self.decode() {
                return Ending::LastChunk;
            }
            match self.more().await {
                Ok(0) => return Ending::BrokenOff,
                Ok(_) => {}
                Err(_) => return Ending::Reset,
            }
        }
    }
}

#[tokio::test]
async fn a_quiet_stream_beats() {
    let server = start(|setting| setting.heartbeat = Duration::from_millis(64));
    let mut client = server.get("/topics/a").await;
    client.until("\n\n:\n:\n:\n").await;
    // A cursor that moves without it is told, so that it resumes from there.
    server.publish("b", "x", 7).await;
    client.until("id: 7\nevent: tidelog.live\n").await;
    server.stop().await;
}

#[tokio::test]
async fn places_are_free_again_when_the_wire_lets_go() {
    let server = start(|setting| setting.server.connections_max = 2);
    for _ in 0..50 {
        let mut one = server.get("/topics/a").await;
        let two = server.get("/topics/a").await;
        one.until("tidelog.live").await;
        drop((one, two));
        server.until("both have gone", |server| server.connections.get() == 0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn what_the_wire_cannot_serve_is_left_to_hyper() {
    let server = start(|_| ());
    server.publish("a", "x", 3).await;
    let mut socket = server.connect(0).await;
    let request = "GET /topics/a?from=earliest&follow=false HTTP/1.0\r\nHost: localhost\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    in_time(socket.read_to_string(&mut all)).await.unwrap();
    assert!(!all.contains("chunked") && all.contains("\n\nid: 3\n"), "{all}");
    let mut socket = server.connect(0).await;
    for _ in 0..2 {
        let request = "HEAD /topics/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(in_time(socket.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    drop(socket);
    server.stop().await;
}
