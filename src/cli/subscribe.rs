//! `tidelog subscribe`: events to stdout, from any place in the log, across broken connections and across runs.
//!
//! What holds: the place that is kept never lies beyond what was written to stdout. Must not know how the stream travels;
//! that is the client's.

mod cursor;
mod show;

use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use tidelog::client::{self, Client, Item, SubscribeOptions, Subscription, Wire};
use tidelog::topic::Pattern;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use self::cursor::{Cursor, CursorError, Keeper};
use super::output::{Output, interrupted, stop_when_stdout_closes, tell};

/// Bytes that are gathered for one write, of what has come already.
const WRITE_BYTES: usize = 64 << 10;
/// How long a write is still waited for after SIGINT or SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// With --no-follow somebody waits for the end, so attempts to connect have one: about half a minute of them.
const FAILURES_MAX: u32 = 5;

/// Follow topics: events to stdout, reconnecting by itself
#[derive(Debug, clap::Args)]
#[command(after_help = "\
PATTERN is a topic in which a token may be `*` (any one token) and the last may be `**` (all the rest); quote it.

The cursor file holds the id of the last event that was written to stdout, and the log's name. It is replaced at most once a \
second, when the program ends, and at SIGINT and SIGTERM. So every event is seen at least once, whatever happens, and \
exactly once when each run ends cleanly; after a crash, the last second's events are seen again. Where the file exists, it \
decides where to begin; --from is only for the first run.

What is not an event (live, gaps, reconnects) is told on stderr. Exits with 0 at SIGINT, SIGTERM, when stdout is closed and \
when the server says that there will be no more; with 1 on what connecting again would not mend.

Examples:
  tidelog subscribe orders.eu
  tidelog subscribe 'orders.**' --from -10 --event created --event paid
  tidelog subscribe '**' --from earliest --no-follow --output json > log.jsonl
  tidelog subscribe jobs --cursor jobs.cursor --from earliest --output json | ./work")]
pub struct Args {
    /// Which topics: orders.eu, orders.*.created, orders.**, **
    #[arg(value_name = "PATTERN", required = true, value_parser = Pattern::parse)]
    patterns: Vec<Pattern>,
    /// The server: `http://HOST[:PORT][/PREFIX]`
    #[arg(long, value_name = "URL", default_value = super::DEFAULT_SERVER)]
    server: String,
    /// Where to begin: earliest, latest, an id, -N (the last N), a time (RFC 3339) or an age (15m). Without it:
    /// latest; with --no-follow: earliest
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    from: Option<String>,
    /// Keep the place in this file, and go on from there next time
    #[arg(long, value_name = "FILE")]
    cursor: Option<PathBuf>,
    /// Only events of this type (repeatable)
    #[arg(long, value_name = "TYPE")]
    event: Vec<String>,
    /// The form of the output
    #[arg(long, short, value_enum, default_value_t = show::Output::Text)]
    output: show::Output,
    /// End at the log's tail instead of waiting for more
    #[arg(long)]
    no_follow: bool,
    /// End after this many events
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
}

/// Why following stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Cursor(#[from] CursorError),
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    #[error("cannot write to stdout: {0}")]
    Output(#[source] io::Error),
}

/// Runs the command.
///
/// # Errors
/// [`Error`] is one sentence for stderr; the exit status is 1.
pub fn run(args: Args) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let done = runtime.block_on(async {
        let stop = interrupted().map_err(Error::Start)?;
        stop_when_stdout_closes(stop.clone()).map_err(Error::Start)?;
        let output = Output::stdout().map_err(Error::Start)?;
        follow(args, output, &stop, &mut |text| tell(&text)).await
    });
    // A name that is still being resolved is not waited for.
    runtime.shutdown_background();
    done
}

async fn follow(
    args: Args,
    output: Output,
    stop: &CancellationToken,
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<(), Error> {
    let client = Client::new(&args.server)?;
    let saved = args.cursor.as_deref().map(cursor::load).transpose()?.flatten();
    let place = saved.clone();
    let options = SubscribeOptions {
        from: args.from.or_else(|| args.no_follow.then(|| "earliest".to_owned())),
        after: place.as_ref().map(|place| place.id),
        log: place.and_then(|place| place.log),
        types: args.event,
        follow: !args.no_follow,
        wire: if args.output == show::Output::Raw { Wire::Plain } else { Wire::Envelope },
        failures_max: args.no_follow.then_some(FAILURES_MAX),
        ..SubscribeOptions::default()
    };
    let mut session = Session {
        subscription: client.subscribe(&args.patterns, options),
        form: args.output,
        left: args.count.map(NonZeroU64::get),
        live: false,
        output,
        waiting: Vec::new(),
        is_behind: false,
        keeper: Keeper::new(args.cursor, saved),
    };
    let ended = session.run(stop, tell).await;
    let saved = session.keeper.save().await;
    match ended {
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        ended => ended?,
    }
    Ok(saved?)
}

struct Session {
    subscription: Subscription,
    form: show::Output,
    /// Events that are still wanted; `None`: all.
    left: Option<u64>,
    /// Whether it was told that the stream is live, since it was connected.
    live: bool,
    output: Output,
    /// What is to be written: at most [`WRITE_BYTES`] and an event.
    waiting: Vec<u8>,
    /// Whether something was received since the last [`Self::flush`].
    is_behind: bool,
    keeper: Keeper,
}

impl Session {
    /// Until the end of the stream, of what is wanted, or of patience.
    async fn run(&mut self, stop: &CancellationToken, tell: &mut (dyn FnMut(String) + Send)) -> Result<(), Error> {
        loop {
            let due = self.keeper.due();
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.flush(stop).await,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.keeper.save().await?,
                item = self.subscription.next() => {
                    let Some(item) = item else { return self.flush(stop).await };
                    let item = match item {
                        Ok(item) => item,
                        Err(error) => {
                            self.flush(stop).await?;
                            return Err(error.into());
                        }
                    };
                    self.take(&item, tell);
                    if self.left == Some(0) {
                        return self.flush(stop).await;
                    }
                    if self.waiting.len() >= WRITE_BYTES {
                        self.flush(stop).await?;
                    }
                }
                // Nothing more is there just now.
                () = std::future::ready(()), if self.is_behind => self.flush(stop).await?,
            }
        }
    }

    fn take(&mut self, item: &Item, tell: &mut (dyn FnMut(String) + Send)) {
        self.is_behind = true;
        show::show(&mut self.waiting, self.form, item, self.subscription.frame());
        if let Some(text) = show::told(item, self.subscription.cursor(), self.live) {
            tell(text);
        }
        match item {
            Item::Live { .. } => self.live = true,
            Item::Disconnected { .. } | Item::LogChanged { .. } => self.live = false,
            Item::Event(_) => self.left = self.left.map(|left| left - 1),
            _ => {}
        }
    }

    /// Writes what is waiting, then takes note of the place. When it is to stop, a stuck write is not waited for for long.
    async fn flush(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        if !self.waiting.is_empty() {
            let mut write = pin!(self.output.write(std::mem::take(&mut self.waiting)));
            let written = tokio::select! {
                biased;
                written = &mut write => written,
                () = stop.cancelled() => match tokio::time::timeout(GRACE, write).await {
                    Ok(written) => written,
                    // The place stays before what may not have been read.
                    Err(_) => return Ok(()),
                },
            };
            written.map_err(Error::Output)?;
        }
        self.is_behind = false;
        if let Some(id) = self.subscription.cursor() {
            self.keeper.note(Cursor { id, log: self.subscription.log().map(str::to_owned) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use clap::Parser as _;
    use parking_lot::Mutex;

    use super::*;
    use crate::cli::testing::{PATIENCE, answer, serve};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Command::try_parse_from([&["subscribe"], args].concat()).map(|command| command.args)
    }

    /// A stdout that tests can read; it closes when it has so many bytes, and tells `stop` when it has some.
    #[derive(Clone)]
    struct Paper {
        text: Arc<Mutex<Vec<u8>>>,
        room: usize,
        stop: Option<CancellationToken>,
    }

    impl Paper {
        fn new(room: usize) -> Self {
            Self { text: Arc::default(), room, stop: None }
        }

        fn text(&self) -> String {
            String::from_utf8(self.text.lock().clone()).unwrap()
        }
    }

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut text = self.text.lock();
            if text.len() + bytes.len() > self.room {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            text.extend_from_slice(bytes);
            if let Some(stop) = &self.stop {
                stop.cancel();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LOG: &str = "text/event-stream\r\nTidelog-Log: l\r\nTidelog-Tail: 9";

    fn event(id: u64) -> String {
        let time = "2026-11-22T10:00:00.000Z";
        format!("id: {id}\ndata: {{\"id\":{id},\"topic\":\"t\",\"time\":\"{time}\",\"data\":\"d{id}\"}}\n\n")
    }

    /// A stream that is ended properly; with `follow=false`, that is the end.
    fn stream(frames: &[String]) -> String {
        answer("200 OK", LOG, &frames.concat())
    }

    /// A stream that stays open.
    fn open_stream(frames: &[String]) -> String {
        let text = frames.concat();
        format!("HTTP/1.1 200 OK\r\ncontent-type: {LOG}\r\ncontent-length: 9999\r\n\r\n{text}")
    }

    async fn run_with(args: &[&str], paper: &Paper, stop: &CancellationToken) -> (Result<(), Error>, Vec<String>) {
        let mut told = Vec::new();
        let args = parse(args).unwrap();
        let mut tell = |text| told.push(text);
        let done = follow(args, Output::to(paper.clone()).unwrap(), stop, &mut tell);
        let done = tokio::time::timeout(PATIENCE, done).await.unwrap();
        (done, told)
    }

    async fn run_to_end(args: &[&str]) -> (String, Vec<String>) {
        let paper = Paper::new(usize::MAX);
        let (done, told) = run_with(args, &paper, &CancellationToken::new()).await;
        done.unwrap();
        (paper.text(), told)
    }

    fn kept(path: &Path) -> (u64, Option<String>) {
        let cursor = cursor::load(path).unwrap().unwrap();
        (cursor.id, cursor.log)
    }

    #[test]
    fn the_command_line_is_checked() {
        assert!(parse(&["a.**", "b", "--from", "-10", "-o", "json", "--count", "3"]).is_ok());
        for bad in [&[][..], &["a.**.b"], &["a", "--count", "0"], &["a", "--output", "xml"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn text_goes_to_stdout_and_the_rest_to_stderr() {
        let gap = "id: 0\nevent: tidelog.gap\ndata: {\"requested\":0,\"earliest\":7,\"reason\":\"trimmed\"}\n\n";
        let live = "id: 9\nevent: tidelog.live\ndata: {\"tail\":9,\"log\":\"l\"}\n\n";
        let (url, mut seen) = serve(vec![stream(&[gap.into(), event(7), live.into(), live.into()])]).await;
        let (text, told) = run_to_end(&["t", "u", "--server", &url, "--no-follow"]).await;
        assert_eq!(text, "7  2026-11-22T10:00:00.000Z  t  -  d7\n");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("GAP") && told[1] == "live at 9 of log l", "{told:?}");
        let request = seen.recv().await.unwrap();
        assert!(
            request.starts_with("GET /events?topic=t&topic=u&from=earliest&envelope=json&follow=false "),
            "{request}"
        );
    }

    #[tokio::test]
    async fn raw_is_frames_as_they_came() {
        let frame = "retry: 5\nid: 7\nevent: e\ndata: a\ndata: b\n\n";
        let (url, _seen) = serve(vec![stream(&[frame.into()])]).await;
        let (text, _) = run_to_end(&["t", "--server", &url, "--no-follow", "--output", "raw"]).await;
        assert_eq!(text, frame);
    }

    #[tokio::test]
    async fn the_place_is_kept_across_runs_and_count_ends_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        let cursor = path.to_str().unwrap();
        let (url, mut seen) = serve(vec![open_stream(&[event(1), event(2), event(3)]), stream(&[event(3)])]).await;
        let (text, _) = run_to_end(&["t", "--server", &url, "--cursor", cursor, "--count", "2", "--from", "1"]).await;
        assert_eq!(text.lines().count(), 2);
        assert_eq!(kept(&path), (2, Some("l".into())));
        assert!(!seen.recv().await.unwrap().contains("last-event-id"));

        let (text, _) = run_to_end(&["t", "--server", &url, "--cursor", cursor, "--no-follow"]).await;
        assert!(text.starts_with("3  "), "{text}");
        assert_eq!(kept(&path).0, 3);
        assert!(seen.recv().await.unwrap().contains("\r\nlast-event-id: 2\r\n"));
    }

    #[tokio::test]
    async fn a_signal_ends_it_with_the_place_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        let (url, _seen) = serve(vec![open_stream(&[event(1)])]).await;
        let stop = CancellationToken::new();
        let paper = Paper { stop: Some(stop.clone()), ..Paper::new(usize::MAX) };
        let (done, _) = run_with(&["t", "--server", &url, "--cursor", path.to_str().unwrap()], &paper, &stop).await;
        done.unwrap();
        assert_eq!(kept(&path).0, 1);
    }

    #[tokio::test]
    async fn a_closed_stdout_ends_it_with_the_place_before_what_was_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        let big = event(2).replace("d2", &"x".repeat(2 * WRITE_BYTES));
        let answers = vec![stream(&[event(1)]), stream(&[big])];
        let (url, _seen) = serve(answers).await;
        let (done, _) = run_with(
            &["t", "--server", &url, "--cursor", path.to_str().unwrap()],
            &Paper::new(WRITE_BYTES),
            &CancellationToken::new(),
        )
        .await;
        done.unwrap();
        assert_eq!(kept(&path).0, 1);
    }

    #[tokio::test]
    async fn what_cannot_be_mended_is_an_error() {
        let problem = r#"{"status":400,"code":"bad_query","detail":"no such place"}"#;
        let (url, _seen) = serve(vec![answer("400 Bad Request", "application/problem+json", problem)]).await;
        let paper = Paper::new(0);
        let (done, _) = run_with(&["t", "--server", &url, "--from", "x"], &paper, &CancellationToken::new()).await;
        assert_eq!(done.unwrap_err().to_string(), "the server refused: no such place (400 bad_query)");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        std::fs::write(&path, "seven").unwrap();
        let (done, _) = run_with(&["t", "--cursor", path.to_str().unwrap()], &paper, &CancellationToken::new()).await;
        assert!(done.unwrap_err().to_string().contains("is not one"));
    }
}
