//! The kernel's price of a delivery: one epoll loop that writes each posted body to each subscriber, as one frame in one chunk.
//!
//! No log, no routing, no memory of anything. It sets the socket options that the server sets. Must not become a server: what it
//! leaves out is what it is for.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use memchr::memmem;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const CREATED: &[u8] = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";

/// So many connections wait to be accepted: all of a run may come at once.
const BACKLOG: i32 = 4096;

const LISTENER: u64 = u64::MAX;

#[derive(Default)]
struct Limit {
    connections: Vec<Option<TcpStream>>,
    /// What each has sent and was not understood yet.
    pending: Vec<Vec<u8>>,
    subscribers: Vec<usize>,
    last_id: u64,
}

/// Serves until it is killed.
pub fn serve() -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(BACKLOG)?;
    let listener: TcpListener = socket.into();
    listener.set_nonblocking(true)?;
    println!("listening on http://{}", listener.local_addr()?);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut limit = Limit::default();
    let mut ready = Vec::with_capacity(1024);
    let mut buffer = vec![0; 256 << 10];
    loop {
        epoll::wait(&epoll, spare_capacity(&mut ready), None)?;
        for event in ready.drain(..) {
            match event.data.u64() {
                LISTENER => limit.accept(&listener, &epoll)?,
                at => limit.read(usize::try_from(at).expect("it was a usize"), &mut buffer),
            }
        }
    }
}

impl Limit {
    fn accept(&mut self, listener: &TcpListener, epoll: impl std::os::fd::AsFd + Copy) -> std::io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let at = self.connections.len();
            epoll::add(epoll, &stream, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
            self.connections.push(Some(stream));
            self.pending.push(Vec::new());
        }
    }

    fn read(&mut self, at: usize, buffer: &mut [u8]) {
        let Some(mut stream) = self.connections[at].as_ref() else { return };
        match stream.read(buffer) {
            Ok(0) => self.drop_connection(at),
            Ok(n) => {
                self.pending[at].extend_from_slice(&buffer[..n]);
                while self.answer(at) {}
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.drop_connection(at),
        }
    }

    /// Takes one request from what is pending; false when there is no whole one.
    fn answer(&mut self, at: usize) -> bool {
        let (pending, Some(mut stream)) = (&mut self.pending[at], self.connections[at].as_ref()) else { return false };
        let Some(head) = memmem::find(pending, b"\r\n\r\n") else { return false };
        let body = head + 4;
        if pending.starts_with(b"GET") {
            pending.drain(..body);
            if stream.write(HEAD).is_ok_and(|n| n == HEAD.len()) {
                self.subscribers.push(at);
            } else {
                self.drop_connection(at);
            }
            return false;
        }
        let length = content_length(&pending[..head]);
        if pending.len() < body + length {
            return false;
        }
        self.last_id += 1;
        let prefix = format!("id: {}\ndata: ", self.last_id);
        let mut chunk = format!("{:x}\r\n{prefix}", prefix.len() + length + 2).into_bytes();
        chunk.extend_from_slice(&pending[body..body + length]);
        chunk.extend_from_slice(b"\n\n\r\n");
        pending.drain(..body + length);
        if stream.write(CREATED).is_err() {
            self.drop_connection(at);
        }
        self.deliver(&chunk);
        true
    }

    /// One write for each subscriber. One that cannot take all of it has lost its place in the stream, so it is cut.
    fn deliver(&mut self, chunk: &[u8]) {
        let mut cut = Vec::new();
        for &at in &self.subscribers {
            if let Some(mut stream) = self.connections[at].as_ref()
                && !stream.write(chunk).is_ok_and(|n| n == chunk.len())
            {
                cut.push(at);
            }
        }
        for at in cut {
            self.drop_connection(at);
        }
    }

    fn drop_connection(&mut self, at: usize) {
        self.connections[at] = None;
        self.pending[at] = Vec::new();
        self.subscribers.retain(|subscriber| *subscriber != at);
    }
}

fn content_length(head: &[u8]) -> usize {
    head.split(|b| *b == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}
