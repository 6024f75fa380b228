//! Sockets: listening, accepting, HTTP/1.1 or HTTP/2 on each connection, and the end of it all.
//!
//! What holds: connections are bounded in number, a drain ends within its time, and no connection outlives `run`. Must not
//! know what requests mean; a [`Handle`] answers them.

mod conn;
mod io;
mod lanes;
mod pace;
mod plain;
mod wire;

use std::convert::Infallible;
use std::future::Future;
use std::io::Result;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::http::request::Parts;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::answer::Body;
use crate::http::{self, Api, Peer};
use crate::log::Lane;
use lanes::Lanes;
use prometheus_client::metrics::gauge::Gauge;
use wire::Wire;

pub use conn::RequestBody;
#[doc(hidden)]
pub use plain::{head, repeat};

/// Connections that wait to be accepted; the kernel cuts it to `net.core.somaxconn`, which is 4096 where it was not touched.
/// A server that restarts has all its subscribers back within a few `retry` times.
const BACKLOG: i32 = 4096;

/// After so many times `write_timeout` the kernel takes a peer for gone that does not acknowledge what was sent. It counts a peer whose window
/// is smaller than its next packet (of up to 64 KiB) among them until that fits, however much it reads meanwhile: it is not to cut off
/// one that is merely slow, which the server itself tells apart.
const GONE_WRITE_TIMEOUTS: u32 = 10;

/// Connections that are accepted before those that were have a turn.
const ACCEPTS: u64 = 16;

/// Connections beyond `connections_max` that are told so, at a time; more are closed without a word.
const TURNED_AWAY_MAX: usize = 128;

/// What can be set here.
#[derive(Debug, Clone)]
pub struct Options {
    pub listen: SocketAddr,
    /// A socket that accepts no byte for this long while a write waits is closed.
    pub write_timeout: Duration,
    /// Connections that have not ended by themselves after this are closed.
    pub drain_timeout: Duration,
    /// 0: no limit but the machine's.
    pub connections_max: usize,
    /// From a connection's first moment, or its last answer, to the end of the next request's head.
    pub header_timeout: Duration,
    /// Most bytes of a request's head; beyond it the answer is 431.
    pub header_bytes_max: u32,
    /// Most threads that serve streams of the log over HTTP/1.1, thousands each, and no more than there are cores; 0 leaves them to
    /// hyper, a task each. Where there is no epoll it is always so.
    pub stream_threads: usize,
    /// Most threads that serve those who publish small events one by one over HTTP/1.1, and no more than half as many as there are
    /// cores; 0 leaves them among all others.
    pub publish_threads: usize,
    /// Counts the open sockets.
    pub connections: Gauge,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4242)),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
            connections_max: 0,
            header_timeout: Duration::from_secs(30),
            header_bytes_max: 64 * 1024,
            stream_threads: wire::THREADS_MAX,
            publish_threads: lanes::LANES_MAX,
            connections: Gauge::default(),
        }
    }
}

/// What answers requests.
pub trait Handle: Clone + Unpin + Send + Sync + 'static {
    /// Answers one.
    fn handle(
        &self,
        request: hyper::Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = hyper::Response<Body>> + Send;

    /// What a request asks for by its head.
    type Known: Send + Sync;

    /// What `request` asks for, where all that have the same head ask for the same, but for its `Content-Length` and their bodies.
    fn known(&self, request: &Parts) -> Option<Self::Known>;

    /// Answers one more of those, with a body that is there.
    fn repeat(&self, known: &Self::Known, body: &[u8]) -> impl Future<Output = hyper::Response<Body>> + Send;

    /// From now on sends everybody away, and ends what streams there are.
    fn drain(&self);

    /// What answers publishers on a thread of their own, and what that thread has to do beside.
    fn lane(&self) -> Option<(Self, impl Commits)> {
        None::<(Self, Infallible)>
    }
}

/// What a lane's thread has to do between the requests.
pub trait Commits: Send + Sync + 'static {
    /// Ready when there is something to do.
    fn due(&self) -> impl Future<Output = ()> + Send;

    /// Does it, beside the runtime. May block.
    fn commit(&self);
}

impl Commits for Infallible {
    async fn due(&self) {
        match *self {}
    }

    fn commit(&self) {
        match *self {}
    }
}

impl Commits for Lane {
    async fn due(&self) {
        Lane::due(self).await;
    }

    fn commit(&self) {
        Lane::commit(self);
    }
}

impl Handle for Api {
    async fn handle(&self, request: hyper::Request<RequestBody>, peer: Peer) -> hyper::Response<Body> {
        Api::handle(self, request, peer).await
    }

    type Known = http::Known;

    fn known(&self, request: &Parts) -> Option<http::Known> {
        Api::known(self, request)
    }

    async fn repeat(&self, known: &http::Known, body: &[u8]) -> hyper::Response<Body> {
        Api::repeat(self, known, body).await
    }

    fn drain(&self) {
        Api::drain(self);
    }

    fn lane(&self) -> Option<(Self, impl Commits)> {
        Some(Api::lane(self))
    }
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    options: Options,
}

/// Places for connections.
struct Places {
    max: usize,
    taken: AtomicUsize,
    /// Told when the last one was left.
    left: Notify,
    /// Counts who has one.
    connections: Gauge,
}

impl Places {
    fn new(max: usize, connections: &Gauge) -> Arc<Self> {
        let connections = connections.clone();
        Arc::new(Self { max, taken: AtomicUsize::new(0), left: Notify::new(), connections })
    }

    /// Ready when nobody has one. Nobody may take one meanwhile.
    async fn all_left(&self) {
        let mut left = pin!(self.left.notified());
        // Before it looks. It and who tells pass through the same lock (Notify's): either this is told, or it sees that the last one left.
        left.as_mut().enable();
        if self.taken.load(Ordering::Acquire) > 0 {
            left.await;
        }
    }
}

/// A connection's place; it is one until this is dropped. Small, as every idle stream has one.
pub struct Seat {
    places: Arc<Places>,
}

impl Seat {
    /// A place, when one is free.
    fn take(places: &Arc<Places>) -> Option<Self> {
        let more = |taken| (taken < places.max).then_some(taken + 1);
        places.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        places.connections.inc();
        Some(Self { places: Arc::clone(places) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.places.connections.dec();
        if self.places.taken.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.places.left.notify_waiters();
        }
    }
}

/// What all connections share.
struct Shared {
    options: Options,
    /// Cancelled when connections are to end by themselves.
    drain: CancellationToken,
    /// Cancelled when they are to end at once.
    kill: CancellationToken,
    tasks: TaskTracker,
    wire: OnceLock<Wire>,
    lanes: OnceLock<Lanes>,
}

impl Server {
    /// Binds and listens.
    ///
    /// # Errors
    /// When the address cannot be bound, or the system refuses what connections are to have.
    pub fn bind(options: Options) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(options.listen), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the last connections of the process before it.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        prepare(&socket, &options)?;
        socket.bind(&options.listen.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self { listener: TcpListener::from_std(socket.into())?, options })
    }

    /// The address that it listens on, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready, then drains: takes no new connection, ends those there are, and returns when they have
    /// ended, at the latest after `drain_timeout`.
    pub async fn run<H: Handle>(self, handler: H, stop: impl Future<Output = ()>) {
        let Self { listener, options } = self;
        let drain_timeout = options.drain_timeout;
        let shared = Arc::new(Shared {
            options,
            drain: CancellationToken::new(),
            kill: CancellationToken::new(),
            tasks: TaskTracker::new(),
            wire: OnceLock::new(),
            lanes: OnceLock::new(),
        });
        start_wire(&handler, &shared);
        start_lanes(&handler, &shared);
        let connections = &shared.options.connections;
        let most = if shared.options.connections_max == 0 { usize::MAX } else { shared.options.connections_max };
        let (places, refusals) = (Places::new(most, connections), Places::new(TURNED_AWAY_MAX, connections));
        tokio::select! {
            () = accept(&listener, &handler, &shared, &places, &refusals) => {}
            () = stop => {}
        }
        drop(listener);
        handler.drain();
        shared.drain.cancel();
        shared.tasks.close();
        let drained = async {
            places.all_left().await;
            shared.tasks.wait().await;
        };
        if tokio::time::timeout(drain_timeout, drained).await.is_err() {
            // For the message alone, so relaxed.
            let left = places.taken.load(Ordering::Relaxed) + refusals.taken.load(Ordering::Relaxed);
            tracing::warn!(connections = left, "closing what did not end within drain_timeout");
            shared.kill.cancel();
            stop_wire(&shared).await;
            shared.tasks.wait().await;
        }
        stop_wire(&shared).await;
        stop_lanes(&shared).await;
    }
}

/// Starts the threads that streams are handed to; without them hyper serves all.
fn start_wire<H: Handle>(handler: &H, shared: &Arc<Shared>) {
    let threads = wire::threads(shared.options.stream_threads);
    if threads == 0 {
        return;
    }
    let runtime = tokio::runtime::Handle::current();
    let give_back: Arc<wire::GiveBack> = {
        // Weak, since what is shared holds the wire.
        let (handler, weak, runtime) = (handler.clone(), Arc::downgrade(shared), runtime.clone());
        Arc::new(move |back| {
            if let Some(shared) = weak.upgrade() {
                let (handler, tasks) = (handler.clone(), shared.tasks.clone());
                tasks.spawn_on(async move { conn::resume(back, handler, &shared).await }, &runtime);
            }
        })
    };
    match Wire::start(threads, shared.options.write_timeout, &runtime, &give_back) {
        Ok(wire) => drop(shared.wire.set(wire)),
        Err(error) => tracing::warn!(%error, "cannot start the threads for streams; each has a task instead"),
    }
}

async fn stop_wire(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let stop = move || shared.wire.get().map(Wire::stop);
    if tokio::task::spawn_blocking(stop).await.is_err() {
        tracing::error!("the threads for streams did not stop");
    }
}

/// Starts the threads that publishers are handed to.
fn start_lanes<H: Handle>(handler: &H, shared: &Arc<Shared>) {
    match Lanes::start(lanes::threads(shared.options.publish_threads), handler, &shared.tasks) {
        Ok(None) => {}
        Ok(Some(lanes)) => drop(shared.lanes.set(lanes)),
        Err(error) => tracing::warn!(%error, "cannot start threads for publishers; they are served among all others"),
    }
}

async fn stop_lanes(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let stop = move || shared.lanes.get().map(Lanes::stop);
    if tokio::task::spawn_blocking(stop).await.is_err() {
        tracing::error!("the threads for publishers did not stop");
    }
}

async fn accept<H: Handle>(
    listener: &TcpListener,
    handler: &H,
    shared: &Arc<Shared>,
    places: &Arc<Places>,
    refusals: &Arc<Places>,
) {
    for accepted in 1_u64.. {
        // So that those of a crowd that reconnects are served as they come, and do not all hold a request's memory at once.
        if accepted.is_multiple_of(ACCEPTS) {
            tokio::task::yield_now().await;
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A connection that was gone before it was taken costs nothing. Out of file descriptors is not over at
                // once, and accepting again without a pause would spin.
                if !is_of_one_connection(&error) {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let Some((seat, peer)) = seat(places, refusals) else { continue };
        let (handler, shared_with) = (handler.clone(), Arc::clone(shared));
        shared.tasks.spawn(async move { conn::serve(stream, peer, seat, handler, &shared_with).await });
    }
}

/// A place among the connections, or among those that are told that there is none.
fn seat(places: &Arc<Places>, refusals: &Arc<Places>) -> Option<(Seat, Peer)> {
    if let Some(seat) = Seat::take(places) {
        return Some((seat, Peer { turned_away: false }));
    }
    Some((Seat::take(refusals)?, Peer { turned_away: true }))
}

fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Of all connections: small frames leave at once, and a peer that vanished is noticed, while nothing is sent by keepalive, while
/// something is by its missing acknowledgement. Connections have these from the socket that accepts them, which spares five system calls
/// for each of those who come back together.
fn prepare(socket: &Socket, options: &Options) -> Result<()> {
    socket.set_tcp_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(options.write_timeout * GONE_WRITE_TIMEOUTS))?;
    Ok(())
}

#[cfg(test)]
mod tests;
