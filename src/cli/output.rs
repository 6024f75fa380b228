//! Stdout for commands that must stay answerable to signals: a thread of its own writes, because a write to a full pipe blocks.
//!
//! What holds: one write at a time, in order; a write that has returned is with the operating system. Must not know what is
//! written.

use std::io::{self, Write};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

struct Job {
    bytes: Vec<u8>,
    done: oneshot::Sender<io::Result<()>>,
}

/// Where a command writes. The thread is never joined, so a stuck pipe does not keep the program from ending.
pub struct Output {
    jobs: mpsc::Sender<Job>,
}

impl Output {
    /// The program's stdout.
    pub fn stdout() -> io::Result<Self> {
        Self::to(io::stdout())
    }

    /// Any other place.
    pub fn to(mut writer: impl Write + Send + 'static) -> io::Result<Self> {
        // Each write is waited for, so one is enough.
        let (jobs, mut waiting) = mpsc::channel::<Job>(1);
        thread::Builder::new().name("output".into()).spawn(move || {
            while let Some(Job { bytes, done }) = waiting.blocking_recv() {
                let result = writer.write_all(&bytes).and_then(|()| writer.flush());
                // Whoever asked may have left.
                let _ = done.send(result);
            }
        })?;
        Ok(Self { jobs })
    }

    /// Writes all of `bytes`. When this is dropped before it is done, they may still be written.
    pub async fn write(&self, bytes: Vec<u8>) -> io::Result<()> {
        let ended = || io::Error::other("the thread that writes has ended");
        let (done, result) = oneshot::channel();
        self.jobs.send(Job { bytes, done }).await.map_err(|_| ended())?;
        result.await.map_err(|_| ended())?
    }
}

/// Cancels `stop` when whoever reads stdout has left, so that a command which waits for events does not wait for one only to
/// find that out.
pub fn stop_when_stdout_closes(stop: CancellationToken) -> io::Result<()> {
    let wait = move || {
        let stdout = io::stdout();
        loop {
            // No flags: only errors and hang-ups, which a file never has.
            match poll(&mut [PollFd::new(&stdout, PollFlags::empty())], None) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return stop.cancel(),
                // Then the next write finds out.
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("stdout".into()).spawn(wait)?;
    Ok(())
}

/// Says something on stderr, for whoever looks; a closed stderr is no reason to stop.
pub fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "tidelog: {text}");
}

/// Is cancelled at the first SIGINT or SIGTERM; from now on they do not end the program by themselves.
pub fn interrupted() -> io::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}
