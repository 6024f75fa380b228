//! Idle subscribers over HTTP/2: many streams on each connection.
//!
//! Memory and CPU time of the client do not matter here, so each connection and each stream is a task.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::ACCEPT;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use super::super::{Deadline, Error, Run, fanout};
use super::{Args, Held};

/// Connects them, `streams` on each connection, and holds them.
pub(super) fn hold(run: &Run, args: &Args, streams: u32) -> Result<Held, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let before = run.usage();
    let begun = run.clock.now();
    runtime.block_on(async {
        let held = tokio::time::timeout(run.deadline.left(), async {
            let mut answers = Vec::new();
            // Dropped, they end with the runtime.
            let mut connections = JoinSet::new();
            for first in (0..args.subscribers).step_by(streams as usize) {
                let sender = connect(run, &mut connections).await?;
                for subscriber in first..args.subscribers.min(first.saturating_add(streams)) {
                    answers
                        .push(subscribe(run, sender.clone(), fanout::topic(subscriber as usize, args.topics)).await?);
                    run.bar.set_position(answers.len() as u64);
                }
            }
            let connect_seconds = run.clock.seconds_since(begun);
            let connected = run.usage();
            let cut = watch(answers, args.hold).await;
            Ok(Held { connect_seconds, idle: run.cost(connected), cost: run.cost(before), cut })
        });
        held.await.unwrap_or_else(|_| timed_out(run.deadline))
    })
}

fn timed_out(deadline: Deadline) -> Result<Held, Error> {
    let after = deadline.after;
    Err(Error::Timeout { doing: "streams opened (does the server allow so many on a connection?)", after })
}

async fn connect(run: &Run, connections: &mut JoinSet<()>) -> Result<SendRequest<Empty<Bytes>>, Error> {
    let failed = |cause| Error::Connect { addr: run.target.addr, cause };
    let stream = tokio::net::TcpStream::connect(run.target.addr).await.map_err(failed)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| Error::Subscribe(error.to_string()))?;
    // That it broke is seen by its streams.
    connections.spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn subscribe(run: &Run, mut sender: SendRequest<Empty<Bytes>>, topic: u32) -> Result<Response<Incoming>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Subscribe(error.to_string());
    let request = Request::get(run.target.subscribe_url(topic)).header(ACCEPT, "text/event-stream");
    let request = request.body(Empty::new()).map_err(|error| failed(&error))?;
    sender.ready().await.map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if answer.status().is_success() {
        Ok(answer)
    } else {
        Err(failed(&format_args!("the server said {}", answer.status())))
    }
}

/// Reads what comes for as long as they are held; gives how many ended.
async fn watch(answers: Vec<Response<Incoming>>, hold: std::time::Duration) -> usize {
    let mut streams = JoinSet::new();
    for mut answer in answers {
        streams.spawn(async move { while let Some(Ok(_)) = answer.frame().await {} });
    }
    let until = tokio::time::Instant::now() + hold;
    let mut ended = 0;
    while let Ok(Some(_)) = tokio::time::timeout_at(until, streams.join_next()).await {
        ended += 1;
    }
    ended
}
