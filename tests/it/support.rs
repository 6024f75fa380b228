//! A server to test, and a client whose every byte is known.
//!
//! What holds: a wait that takes longer than [`TOO_LONG`] fails its test; a server never outlives what started it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tidelog::sse::decode::Decoder;

/// Every wait is over long before this; one that reaches it has failed.
pub const TOO_LONG: Duration = Duration::from_secs(30);

/// Whatever port is free.
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The built program.
pub const BIN: &str = env!("CARGO_BIN_EXE_tidelog");

/// `tidelog serve` on a port of its own.
pub struct TestServer {
    child: Child,
    pub addr: SocketAddr,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    own: Option<TempDir>,
    ended: bool,
}

impl TestServer {
    /// On a directory of its own; each of `sets` is one `KEY=VALUE`.
    pub fn start(sets: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut server = Self::start_in(own.path(), sets);
        server.own = Some(own);
        server
    }

    /// On `dir`, which outlives it.
    pub fn start_in(dir: &Path, sets: &[&str]) -> Self {
        Self::start_as(Command::new(BIN), dir, sets)
    }

    /// On an address that another one had.
    pub fn start_at(addr: SocketAddr, dir: &Path, sets: &[&str]) -> Self {
        Self::run(Command::new(BIN), addr, dir, sets)
    }

    /// The same, run by `program`, a command that ends where the path of the program would be its last word.
    pub fn start_as(program: Command, dir: &Path, sets: &[&str]) -> Self {
        Self::run(program, ANY_PORT, dir, sets)
    }

    /// The same; gives nothing where it ends before it listens.
    #[allow(dead_code, reason = "for servers that are made to die while they start")]
    pub fn try_start_as(program: Command, dir: &Path, sets: &[&str]) -> Option<Self> {
        Self::try_run(program, ANY_PORT, dir, sets).ok()
    }

    fn run(program: Command, addr: SocketAddr, dir: &Path, sets: &[&str]) -> Self {
        Self::try_run(program, addr, dir, sets).unwrap_or_else(|_ended| panic!("the server does not listen"))
    }

    /// The server; as an error, one that has ended without listening.
    fn try_run(mut program: Command, addr: SocketAddr, dir: &Path, sets: &[&str]) -> Result<Self, Self> {
        let mut child = serve(&mut program, addr, dir, sets).spawn().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (told, listening) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reads_out = thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on http://") {
                    let _ = told.send(address.parse().unwrap());
                }
            }
        });
        let err = BufReader::new(child.stderr.take().unwrap());
        let kept = stderr.clone();
        let reads_err = thread::spawn(move || {
            for line in err.lines().map_while(Result::ok) {
                let mut kept = kept.lock();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let readers = vec![reads_out, reads_err];
        let mut server = Self { child, addr, stderr, readers, own: None, ended: false };
        match listening.recv_timeout(TOO_LONG) {
            Ok(addr) => {
                server.addr = addr;
                Ok(server)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                server.wait();
                Err(server)
            }
            Err(error) => panic!("the server does not listen ({error})"),
        }
    }

    /// The process, for signals.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// `http://…` with its port.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it has said on stderr.
    pub fn said(&self) -> String {
        self.stderr.lock().clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let (pid, (done, ended)) = (self.pid(), mpsc::channel::<()>());
        // A child that does not end is killed, so that waiting for it ends too.
        let watch = thread::spawn(move || {
            if ended.recv_timeout(TOO_LONG).is_err() {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let status = self.child.wait().unwrap();
        let _ = done.send(());
        watch.join().unwrap();
        self.ended = true;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    /// SIGTERM, and what came of it.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    pub fn connect(&self) -> Conn {
        Conn::connect(self.addr).unwrap()
    }

    pub fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", target, headers, b"")
    }

    /// One request on a connection of its own.
    pub fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.connect().ask(method, target, headers, body).unwrap()
    }

    /// Publishes one event and gives its id.
    pub fn publish(&self, target: &str, data: &str) -> u64 {
        let answer = self.ask("POST", &format!("/topics/{target}"), &[], data.as_bytes());
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_u64().unwrap()
    }

    /// Publishes JSON lines and gives the first and the last id.
    pub fn publish_lines(&self, target: &str, lines: &str) -> (u64, u64) {
        let answer = self.ask("POST", target, &[("Content-Type", "application/x-ndjson")], lines.as_bytes());
        assert_eq!(answer.status, 201, "{answer:?}");
        let json = answer.json();
        (json["first"].as_u64().unwrap(), json["last"].as_u64().unwrap())
    }

    /// The head of a stream, and its events.
    pub fn stream(&self, target: &str, headers: &[(&str, &str)]) -> Stream {
        Stream::open(self.addr, target, headers).unwrap()
    }

    /// The value of one metric.
    pub fn metric(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics", &[]).body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    pub fn tail(&self) -> u64 {
        self.ask("HEAD", "/events", &[], b"").header("tidelog-tail").unwrap().parse().unwrap()
    }

    /// Every event that is retained and matches, as its JSON object.
    pub fn everything(&self, target: &str) -> Vec<Value> {
        let joint = if target.contains('?') { '&' } else { '?' };
        let stream =
            self.stream(&format!("{target}{joint}from=earliest&follow=false"), &[("Accept", "application/x-ndjson")]);
        let text = stream.rest().expect("it ends properly");
        // An empty line is a heartbeat.
        let lines = text.lines().filter(|line| !line.is_empty());
        let values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        values.filter(|value| value.get("id").is_some()).collect()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        drop(self.own.take());
        if thread::panicking() {
            eprintln!("the server said:\n{}", self.said());
        }
    }
}

/// `program serve`, with nothing in its environment that would configure it.
pub fn serve<'a>(program: &'a mut Command, addr: SocketAddr, dir: &Path, sets: &[&str]) -> &'a mut Command {
    program.args(["serve", "--listen", &addr.to_string(), "--data"]).arg(dir);
    for set in sets {
        program.args(["--set", set]);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDELOG_") {
            program.env_remove(name);
        }
    }
    program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// The head of an answer.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub head: Head,
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The code of the problem that this is, with everything that a problem must have.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        for member in ["type", "title", "detail", "code"] {
            assert!(json[member].as_str().is_some_and(|text| !text.is_empty()), "no {member}: {self:?}");
        }
        assert_eq!(self.header("retry-after").is_some(), self.status == 503, "{self:?}");
        json["code"].as_str().unwrap().to_owned()
    }

    pub fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

/// A connection that is written to by the byte.
#[derive(Debug)]
pub struct Conn {
    pub socket: TcpStream,
    buffer: Vec<u8>,
}

fn eof() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl Conn {
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&addr, TOO_LONG)?)
    }

    fn over(socket: TcpStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(TOO_LONG))?;
        socket.set_write_timeout(Some(TOO_LONG))?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: Vec::new() })
    }

    /// With a receive buffer of about `bytes`.
    pub fn connect_narrow(addr: SocketAddr, bytes: usize) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(bytes)?;
        socket.connect_timeout(&addr.into(), TOO_LONG)?;
        Self::over(socket.into())
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref())
    }

    /// Sends one request; a body makes a `Content-Length`, `Host` is localhost unless it is given.
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
        let given = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
        if !given("host") {
            bytes.extend_from_slice(b"Host: localhost\r\n");
        }
        if (!body.is_empty() || method == "POST" || method == "PUT") && !given("content-length") {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        for (name, value) in headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.send(bytes)
    }

    pub fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        self.request(method, target, headers, body)?;
        self.answer(method == "HEAD")
    }

    /// Reads one answer; `bodiless` when it answers HEAD.
    pub fn answer(&mut self, bodiless: bool) -> io::Result<Answer> {
        let head = self.head()?;
        let mut body = Vec::new();
        if bodiless || head.status == 204 {
        } else if head.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk()? {
                body.extend_from_slice(&chunk);
            }
        } else {
            let length = head.header("content-length").map_or(0, |text| text.parse().unwrap());
            body = self.take(length)?;
        }
        let body = String::from_utf8(body).expect("answers are UTF-8");
        Ok(Answer { status: head.status, head, body })
    }

    pub fn head(&mut self) -> io::Result<Head> {
        let status = self.line()?;
        let status =
            status.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or_else(|| panic!("{status:?}"));
        let mut head = Head { status: status.parse().unwrap(), headers: Vec::new() };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(head);
            }
            let (name, value) = line.split_once(':').unwrap();
            head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a chunked body; `None` at its proper end.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let length = usize::from_str_radix(&self.line()?, 16).expect("a chunk begins with its length");
        let chunk = self.take(length)?;
        assert_eq!(self.line()?, "", "a chunk ends with its line");
        Ok((length > 0).then_some(chunk))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut from = 0;
        loop {
            if let Some(end) = self.buffer[from..].iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=from + end).collect();
                return Ok(String::from_utf8(line).expect("heads are UTF-8").trim_end_matches(['\r', '\n']).to_owned());
            }
            from = self.buffer.len();
            self.more()?;
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        match self.socket.read(&mut bytes)? {
            0 => Err(eof()),
            n => {
                self.buffer.extend_from_slice(&bytes[..n]);
                Ok(())
            }
        }
    }

    /// Waits until an answer has begun, and reads none of it but its first bytes.
    pub fn peek(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { self.more() } else { Ok(()) }
    }

    /// Everything up to where the peer closes the connection, or resets it.
    pub fn until_closed(&mut self) -> Vec<u8> {
        while self.more().is_ok() {}
        std::mem::take(&mut self.buffer)
    }
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: u64,
    /// Empty when it has none.
    pub event: String,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Whether the stream speaks of itself.
    pub fn is_control(&self) -> bool {
        self.event.starts_with("tidelog.")
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its last chunk.
    Proper,
    Broken,
}

/// A stream of Server-Sent Events, or of JSON lines, over HTTP/1.1.
pub struct Stream {
    pub head: Head,
    pub conn: Conn,
    pub decoder: Decoder,
    rest: Vec<u8>,
    /// The bytes as they came, where [`Stream::keep`] asked for them.
    pub raw: Option<Vec<u8>>,
    pub end: Option<End>,
}

impl Stream {
    /// # Errors
    /// What broke, also when the answer is not a stream (then as `InvalidData`).
    pub fn open(addr: SocketAddr, target: &str, headers: &[(&str, &str)]) -> io::Result<Self> {
        Self::over(Conn::connect(addr)?, target, headers)
    }

    pub fn over(conn: Conn, target: &str, headers: &[(&str, &str)]) -> io::Result<Self> {
        let stream = Self::or_nothing(conn, target, headers)?;
        stream.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "204 instead of a stream"))
    }

    /// `None` where the answer is that nothing more is owed.
    pub fn or_nothing(mut conn: Conn, target: &str, headers: &[(&str, &str)]) -> io::Result<Option<Self>> {
        conn.request("GET", target, headers, b"")?;
        let head = conn.head()?;
        if head.status == 204 {
            return Ok(None);
        }
        if head.status != 200 || head.header("transfer-encoding") != Some("chunked") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{head:?}")));
        }
        Ok(Some(Self { head, conn, decoder: Decoder::default(), rest: Vec::new(), raw: None, end: None }))
    }

    /// Keeps the bytes that come.
    pub fn keep(mut self) -> Self {
        self.raw = Some(Vec::new());
        self
    }

    /// The next chunk's bytes; `None` at either end.
    pub fn bytes(&mut self) -> Option<Vec<u8>> {
        if self.end.is_some() {
            return None;
        }
        match self.conn.chunk() {
            Ok(Some(bytes)) => {
                if let Some(raw) = &mut self.raw {
                    raw.extend_from_slice(&bytes);
                }
                Some(bytes)
            }
            Ok(None) => {
                self.end = Some(End::Proper);
                None
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("the stream says nothing for {TOO_LONG:?}")
            }
            Err(_) => {
                self.end = Some(End::Broken);
                None
            }
        }
    }

    /// The next event, control events too; `None` when the stream has ended.
    pub fn next(&mut self) -> Option<Event> {
        let deadline = Instant::now() + TOO_LONG;
        loop {
            let mut rest = &self.rest[..];
            let message = self.decoder.next(&mut rest).unwrap();
            let taken = self.rest.len() - rest.len();
            self.rest.drain(..taken);
            if let Some(message) = message {
                // The entries of a state have none: they keep what the stream has said before, if it has said anything.
                let id = if message.event == "tidelog.state" && message.id.is_empty() { "0" } else { &message.id };
                let id = id.parse().unwrap_or_else(|_| panic!("an event without an id: {message:?}"));
                return Some(Event { id, event: message.event, data: message.data });
            }
            assert!(Instant::now() < deadline, "the stream says nothing but that it is there for {TOO_LONG:?}");
            let bytes = self.bytes()?;
            self.rest.extend_from_slice(&bytes);
        }
    }

    /// The next event that is not a control event.
    pub fn event(&mut self) -> Event {
        loop {
            let event = self.next().expect("the stream goes on");
            if !event.is_control() {
                return event;
            }
            assert_eq!(event.event, "tidelog.live", "{event:?}");
        }
    }

    /// The next control event, which must be `name`, and nothing else before it.
    pub fn control(&mut self, name: &str) -> Event {
        let event = self.next().expect("the stream goes on");
        assert_eq!(event.event, name, "{event:?}");
        event
    }

    /// All bytes to the end, with which it must be proper.
    pub fn rest(mut self) -> Option<String> {
        let mut all = Vec::new();
        while let Some(bytes) = self.bytes() {
            all.extend_from_slice(&bytes);
        }
        (self.end == Some(End::Proper)).then(|| String::from_utf8(all).expect("streams are UTF-8"))
    }

    /// The next line of JSON lines, heartbeats left out.
    pub fn line(&mut self) -> Value {
        let deadline = Instant::now() + TOO_LONG;
        loop {
            if let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if line.len() > 1 {
                    return serde_json::from_slice(&line).unwrap();
                }
                continue;
            }
            assert!(Instant::now() < deadline, "the stream says nothing but that it is there for {TOO_LONG:?}");
            let bytes = self.bytes().expect("the stream goes on");
            self.rest.extend_from_slice(&bytes);
        }
    }

    pub fn shutdown(&self) {
        let _ = self.conn.socket.shutdown(Shutdown::Both);
    }
}

/// Does something when it is dropped: ends threads that wait for it, also where their test has failed.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Tries again and again until `done` gives something; each try should take its own time, such as a request does.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TOO_LONG;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
    }
}
