//! Threads that serve publishers: each a runtime of its own with many connections, which commits between their requests.
//!
//! What holds: a connection comes here when it publishes small events one by one, and leaves with the first request that is anything
//! else, so nothing shares a thread that waits for the disk but those who wait for it anyway. Should the disk hang, another thread goes
//! on in its place (`driver`). Must not know what requests mean.

mod driver;

use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle as Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::io::Socket;
use super::plain::{Next, Plain};
use super::wire::GivenBack;
use super::{Handle, Seat, Shared, conn};

/// More of them do not publish faster: one disk has one writer.
pub const LANES_MAX: usize = 4;

/// How many there are to be on this machine, where there may be `most`. One keeps a core busy; the publishers, and what delivers,
/// want others.
pub fn threads(most: usize) -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get() / 2).max(1).min(most)
}

/// With so many connections a lane has enough to do while it does not wait for the disk. With fewer, more lanes would only make more, smaller
/// commits.
const LANE_FULL: usize = 32;

/// A connection that publishes again and again.
pub struct Publishing {
    /// Non-blocking.
    pub socket: std::net::TcpStream,
    /// Its next request.
    pub read: BytesMut,
    pub seat: Seat,
}

struct One {
    take: Box<Take>,
    /// How many connections it has. A guess that is late, or that two take at once, makes a lane a little fuller: relaxed is enough.
    load: Arc<AtomicUsize>,
}

/// Serves a connection on a lane.
type Take = dyn Fn(Publishing, Load, Arc<Shared>) + Send + Sync;

/// One more connection on a lane, for as long as this lives.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn on(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The lanes.
pub struct Lanes {
    all: Vec<One>,
    stop: CancellationToken,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Lanes {
    /// Starts the threads; `None` where there are to be none. Connections are tracked by `tasks`.
    ///
    /// # Errors
    /// When the system has no more threads or files to give.
    pub fn start<H: Handle>(lanes: usize, handler: &H, tasks: &TaskTracker) -> Result<Option<Self>> {
        let mut started = Self { all: Vec::new(), stop: CancellationToken::new(), threads: Mutex::default() };
        let main = Runtime::current();
        for number in 0..lanes {
            let Some((on_lane, commits)) = handler.lane() else { return Ok(None) };
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let lane = runtime.handle().clone();
            let threads = driver::start(number, runtime, commits, started.stop.clone())?;
            started.threads.get_mut().extend(threads);
            let (handler, main, tasks) = (handler.clone(), main.clone(), tasks.clone());
            let take: Box<Take> = Box::new(move |publishing, load, shared| {
                let (on_lane, others) = (on_lane.clone(), Others { handler: handler.clone(), runtime: main.clone() });
                let served = async move {
                    serve(publishing, on_lane, others, shared).await;
                    drop(load);
                };
                tasks.spawn_on(served, &lane);
            });
            started.all.push(One { take, load: Arc::default() });
        }
        Ok(Some(started).filter(|lanes| !lanes.all.is_empty()))
    }

    /// Serves a connection from now on.
    pub fn take(&self, publishing: Publishing, shared: &Arc<Shared>) {
        let load = |one: &&One| one.load.load(Ordering::Relaxed);
        let lane = self.all.iter().find(|one| load(one) < LANE_FULL).or_else(|| self.all.iter().min_by_key(load));
        if let Some(One { take, load }) = lane {
            take(publishing, Load::on(load), Arc::clone(shared));
        }
    }

    /// Ends the threads, whose connections must have ended. Blocks for a moment.
    pub fn stop(&self) {
        self.stop.cancel();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread for publishers had panicked");
            }
        }
    }
}

impl Drop for Lanes {
    /// Also where a server is dropped in its midst: the threads end by themselves.
    fn drop(&mut self) {
        self.stop.cancel();
        self.threads.get_mut().iter().for_each(|thread| thread.thread().unpark());
    }
}

/// Who serves what is not for a lane.
struct Others<H> {
    handler: H,
    runtime: Runtime,
}

async fn serve<H: Handle>(publishing: Publishing, on_lane: H, others: Others<H>, shared: Arc<Shared>) {
    let Publishing { socket, read, seat } = publishing;
    let served = async {
        let socket = match TcpStream::from_std(socket) {
            Ok(stream) => Socket::new(stream, Bytes::new(), shared.options.write_timeout),
            Err(error) => return tracing::warn!(%error, "a publisher cannot go on"),
        };
        match (Plain { socket, read }).publishes(&on_lane, &shared).await {
            Next::Hyper(socket) => leave(socket, seat, others, &shared),
            Next::End(socket) => socket.finish(false).await,
            Next::Lane(_) | Next::Stream(..) => unreachable!("it is on a lane, which takes publishes only"),
        }
    };
    tokio::select! {
        biased;
        () = served => {}
        () = shared.kill.cancelled() => {}
    }
}

/// What it asks for now is not for a lane.
fn leave<H: Handle>(mut socket: Socket, seat: Seat, others: Others<H>, shared: &Arc<Shared>) {
    let ahead = socket.take_back();
    match socket.into_std() {
        Ok(socket) => {
            let (back, shared) = (GivenBack { socket, ahead, seat }, Arc::clone(shared));
            let tasks = shared.tasks.clone();
            tasks.spawn_on(async move { conn::resume(back, others.handler, &shared).await }, &others.runtime);
        }
        Err(error) => tracing::warn!(%error, "a publisher cannot go on"),
    }
}
