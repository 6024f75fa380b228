//! The write timeout of a stream over HTTP/2 (`server/pace.rs`), with a clock that the scenario moves: a chunk that is not handed on for
//! the timeout ends its stream within half as long again; one that is handed on in time never does, however the samples fall.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use hyper::rt::Executor as _;
use tokio_util::task::TaskTracker;

use self::pace::{Paced, Streams};
use crate::sync::clock::{self, Instant, sleep};
use crate::world::any;

#[path = "../../src/server/pace.rs"]
mod pace;

const TIMEOUT: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_millis(1);

/// A body with one chunk after each of these pauses.
struct Chunks {
    pauses: Vec<u32>,
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.pause.is_none() {
            let Some(pause) = self.pauses.pop() else { return Poll::Ready(None) };
            self.pause = Some(Box::pin(sleep(TICK * pause)));
        }
        match self.pause.as_mut().unwrap().as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.pause = None;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
            }
        }
    }
}

#[derive(Default)]
struct Fate {
    /// When the last chunk was taken that has not been handed on.
    taken: Option<Instant>,
    finished: bool,
    dropped: Option<Instant>,
}

/// Notes when its stream's task is dropped.
struct Mortal(Arc<Mutex<Fate>>);

impl Drop for Mortal {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = Some(Instant::now());
    }
}

pub fn a_stalled_stream_is_cut_and_a_moving_one_never() {
    clock::begin(0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fate = Arc::new(Mutex::new(Fate::default()));
    // Half of them stay below the timeout in all they do.
    let slowest = if any(2) == 0 { 20 } else { 45 };
    let handing: Vec<u32> = (0..5).map(|_| any(slowest)).collect();
    let pauses = (0..5).map(|_| any(70)).collect();
    let longest = TICK * handing.iter().copied().max().unwrap();
    let stream = {
        let mortal = Mortal(fate.clone());
        async move {
            // Within its task: that is where its pace is.
            let mut body = Paced::new(Chunks { pauses, pause: None });
            for took in handing {
                let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                assert!(frame.is_some());
                mortal.0.lock().unwrap().taken = Some(Instant::now());
                sleep(TICK * took).await;
                mortal.0.lock().unwrap().taken = None;
            }
            assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_none());
            mortal.0.lock().unwrap().finished = true;
        }
    };
    let (streams, began) = (Streams { tasks: TaskTracker::new(), write_timeout: TIMEOUT }, any(11));
    runtime.block_on(async {
        clock::pass(TICK * began);
        streams.execute(Polled(Box::pin(stream)));
        while fate.lock().unwrap().dropped.is_none() {
            tokio::task::yield_now().await;
            clock::pass(TICK);
        }
    });
    let fate = fate.lock().unwrap();
    match (fate.finished, fate.taken, fate.dropped) {
        (true, None, Some(_)) => {
            assert!(longest < TIMEOUT * 3 / 2 + TICK * 2, "a stall of {longest:?} was not noticed");
        }
        (false, Some(taken), Some(dropped)) => {
            let stalled = dropped - taken;
            assert!(stalled >= TIMEOUT, "a stream was cut that had stalled for {stalled:?}");
            assert!(stalled <= TIMEOUT * 3 / 2 + TICK * 2, "a stream that stalls was cut only after {stalled:?}");
        }
        _ => panic!("a stream was cut while nothing was to be handed on"),
    }
}

/// Has itself polled again and again, since time wakes nobody here.
struct Polled<F>(Pin<Box<F>>);

impl<F: Future<Output = ()>> Future for Polled<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        cx.waker().wake_by_ref();
        self.0.as_mut().poll(cx)
    }
}
