//! `tidelog publish`: one event from the command line, or stdin as events.
//!
//! What holds: nothing is sent twice, lines go out in order, and when it stops early it says how much was acked and from which
//! line to go on. Must not know how requests travel; that is the client's.

mod input;

use std::io::{self, IsTerminal as _};
use std::pin::pin;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tidelog::client::{self, Ack, Client};
use tidelog::event::{EventType, InvalidName, Key, NewEvent};
use tidelog::topic::{InvalidTopic, Topic};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::input::{Batch, Batches, InputError, Shape};
use super::output::{Output, interrupted, tell};

/// How long an ack is still waited for after SIGINT or SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// Publish events: DATA, or the lines of stdin
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints the ids as JSON when they are durable: {\"id\":42} for one event, {\"first\":43,\"last\":44,\"count\":2} for each \
batch of lines. Lines that are waiting go together: up to 500, 1 MiB, or what comes within 50 ms. When it cannot go on, it \
says how many events were acked and from which line to go on, and exits with 1.

Examples:
  tidelog publish orders.eu '{\"n\":1}' --event created --key 7
  tail -f app.log | tidelog publish logs.app
  tidelog publish docs.readme --whole < README.md
  jq -c '{topic: .channel, data: .}' dump.json | tidelog publish - --json-lines --quiet")]
pub struct Args {
    /// The topic, such as orders.eu.42; `-` with --json-lines: each line names its own in "topic"
    #[arg(value_name = "TOPIC", value_parser = Destination::parse, allow_hyphen_values = true)]
    topic: Destination,
    /// The data of one event. Without it, each line of stdin is an event
    #[arg(conflicts_with_all = ["whole", "json_lines"], allow_negative_numbers = true)]
    data: Option<String>,
    /// The server: `http://HOST[:PORT][/PREFIX]`
    #[arg(long, value_name = "URL", default_value = super::DEFAULT_SERVER)]
    server: String,
    /// The type of the events
    #[arg(long, value_name = "TYPE", value_parser = TypeArg::parse)]
    event: Option<TypeArg>,
    /// The key of the events, such as the id of what they are about
    #[arg(long, value_parser = Key::parse)]
    key: Option<Key>,
    /// Stdin holds JSON lines: {"event"?, "key"?, "data"}
    #[arg(long, conflicts_with_all = ["whole", "event", "key"])]
    json_lines: bool,
    /// All of stdin is one event
    #[arg(long)]
    whole: bool,
    /// Do not print the ids
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone)]
enum Destination {
    Topic(Topic),
    /// Each line's own.
    Named,
}

impl Destination {
    fn parse(text: &str) -> Result<Self, InvalidTopic> {
        match text {
            "-" => Ok(Self::Named),
            name => Topic::parse(name).map(Self::Topic),
        }
    }
}

#[derive(Debug, Clone)]
struct TypeArg(Option<EventType>);

impl TypeArg {
    fn parse(text: &str) -> Result<Self, InvalidName> {
        EventType::parse(text).map(Self)
    }
}

/// Why publishing stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("only lines that name their topic can go to `-`: add --json-lines")]
    NoTopic,
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    #[error("cannot write to stdout: {0}")]
    Output(#[source] io::Error),
    /// It stopped amid the lines.
    #[error("{why}; {acked} event{} acked{}", if *acked == 1 { " was" } else { "s were" }, go_on(*from, *unknown_to))]
    Lines {
        why: String,
        acked: u64,
        /// The first line that was not acked.
        from: u64,
        /// The last of the lines of which it is not known whether they were published.
        unknown_to: Option<u64>,
    },
}

fn go_on(from: u64, unknown_to: Option<u64>) -> String {
    match unknown_to {
        None => format!("; go on from line {from}"),
        Some(to) if to == from => format!("; line {from} may have been published too: look before you go on from it"),
        Some(to) => {
            format!("; lines {from} to {to} may have been published too: look before you go on from line {from}")
        }
    }
}

/// Runs the command.
///
/// # Errors
/// [`Error`] is one sentence for stderr; the exit status is 1.
pub fn run(args: Args) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let done = runtime.block_on(publish(args));
    // A name that is still being resolved is not waited for.
    runtime.shutdown_background();
    done
}

async fn publish(args: Args) -> Result<(), Error> {
    let client = Client::new(&args.server)?;
    let output = if args.quiet { None } else { Some(Output::stdout().map_err(Error::Start)?) };
    let mut told = Told { output, progress: None, acked: 0 };
    let event = args.event.and_then(|TypeArg(event)| event);
    let topic = match args.topic {
        Destination::Topic(topic) => Some(topic),
        Destination::Named if args.json_lines => None,
        Destination::Named => return Err(Error::NoTopic),
    };
    let data = match args.data {
        Some(data) => Some(data),
        None if args.whole => Some(whole_stdin().await?),
        None => None,
    };
    match (topic, data) {
        (Some(topic), Some(data)) => {
            let ack = client.publish(NewEvent { topic, event, key: args.key, data }, None).await?;
            told.acked(&ack, false).await
        }
        (topic, _) => {
            let stdin_is_terminal = io::stdin().is_terminal();
            if stdin_is_terminal {
                tell("each line is an event; end with Ctrl-D");
            } else if args.quiet || !io::stdout().is_terminal() {
                told.progress = progress();
            }
            let shape = if args.json_lines { Shape::Json } else { Shape::Data { event, key: args.key } };
            let stop = interrupted().map_err(Error::Start)?;
            let batches = Batches::new(io::stdin(), shape).map_err(Error::Start)?;
            publish_lines(&client, topic.as_ref(), batches, &mut told, &stop).await
        }
    }
}

/// Reads stdin in a thread that is never joined, so that the program can end while it waits.
async fn whole_stdin() -> Result<String, Error> {
    let (send, whole) = oneshot::channel();
    let read = move || drop(send.send(input::read_whole(io::stdin())));
    std::thread::Builder::new().name("input".into()).spawn(read).map_err(Error::Start)?;
    let whole = whole.await.map_err(|_| Error::Start(io::Error::other("the thread that reads stdin has ended")))?;
    Ok(whole?)
}

/// A count on stderr, when somebody is looking.
fn progress() -> Option<ProgressBar> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {human_pos} events, {rate} events/s, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A bar that cannot be drawn is not worth a failure.
            let _ = write!(out, "{:.0}", state.per_sec());
        });
    bar.set_style(style);
    Some(bar)
}

/// What is told of the acks.
struct Told {
    /// `None`: nobody wants the ids, or stdout was closed.
    output: Option<Output>,
    progress: Option<ProgressBar>,
    acked: u64,
}

impl Told {
    async fn acked(&mut self, ack: &Ack, batch: bool) -> Result<(), Error> {
        self.acked += ack.count;
        if let Some(progress) = &self.progress {
            progress.inc(ack.count);
        }
        let Some(output) = &self.output else { return Ok(()) };
        let Ack { first, last, count } = ack;
        let line = if batch {
            format!("{{\"first\":{first},\"last\":{last},\"count\":{count}}}\n")
        } else {
            format!("{{\"id\":{first}}}\n")
        };
        match output.write(line.into_bytes()).await {
            // Whoever read the ids has left; the events are still to be published.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.output = None,
            written => written.map_err(Error::Output)?,
        }
        Ok(())
    }
}

async fn publish_lines(
    client: &Client,
    topic: Option<&Topic>,
    mut batches: Batches,
    told: &mut Told,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut from = 1;
    let result = loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break Err(("interrupted".to_owned(), None)),
            next = batches.next() => next,
        };
        let batch = match next {
            Ok(Some(batch)) => batch,
            Ok(None) => break Ok(()),
            Err(error) => break Err((error.to_string(), None)),
        };
        let after = batch.last + 1;
        if !batch.is_blank {
            let ack = match send(client, topic, batch, stop).await {
                Ok(ack) => ack,
                Err(failed) => break Err(failed),
            };
            from = after;
            let telling = told.acked(&ack, true);
            tokio::select! {
                told = telling => if let Err(error) = told { break Err((error.to_string(), None)) },
                () = stop.cancelled() => break Err(("interrupted".to_owned(), None)),
            }
        }
        from = after;
    };
    if let Some(progress) = &told.progress {
        progress.finish();
    }
    result.map_err(|(why, unknown_to)| Error::Lines { why, acked: told.acked, from, unknown_to })
}

/// Publishes one batch. `Err`: why, and up to which line the outcome is unknown.
async fn send(
    client: &Client,
    topic: Option<&Topic>,
    batch: Batch,
    stop: &CancellationToken,
) -> Result<Ack, (String, Option<u64>)> {
    let Batch { lines, first, last, .. } = batch;
    let mut sending = pin!(client.publish_lines(topic, lines, None));
    let answer = tokio::select! {
        biased;
        answer = &mut sending => answer,
        () = stop.cancelled() => match tokio::time::timeout(GRACE, sending).await {
            Ok(answer) => answer,
            Err(_) => return Err(("interrupted".into(), Some(last))),
        },
    };
    answer.map_err(|error| {
        let unknown_to = error.outcome_unknown().then_some(last);
        // The server counts the lines of its batch.
        let counted = if first > 1 { format!(" (the batch's line 1 is line {first} of stdin)") } else { String::new() };
        (format!("{error}{counted}"), unknown_to)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use parking_lot::Mutex;

    use super::*;
    use crate::cli::testing::{answer, serve};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Command::try_parse_from([&["publish"], args].concat()).map(|command| command.args)
    }

    /// A stdout that tests can read, or one that is closed.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>, bool);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ack(first: u64, last: u64) -> String {
        let body = format!("{{\"first\":{first},\"last\":{last},\"count\":{}}}", last - first + 1);
        answer("201 Created", "application/json", &body)
    }

    async fn publish_text(url: &str, text: String, shape: Shape, paper: Paper) -> (Result<(), Error>, u64) {
        let client = Client::new(url).unwrap();
        let topic = Topic::parse("t").unwrap();
        let batches = Batches::new(io::Cursor::new(text), shape).unwrap();
        let mut told = Told { output: Some(Output::to(paper).unwrap()), progress: None, acked: 0 };
        let done = publish_lines(&client, Some(&topic), batches, &mut told, &CancellationToken::new()).await;
        (done, told.acked)
    }

    #[test]
    fn the_command_line_is_checked() {
        assert!(parse(&["t", "-5"]).is_ok());
        assert!(parse(&["-", "--json-lines"]).is_ok());
        for bad in [
            &["a..b"][..],
            &["t.*"],
            &["t", "x", "--whole"],
            &["t", "x", "--json-lines"],
            &["t", "--json-lines", "--key", "k"],
            &["t", "--event", "tidelog.x"],
            &["t", "--key", ""],
            &[],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(run(parse(&["-", "x"]).unwrap()), Err(Error::NoTopic)));
    }

    #[tokio::test]
    async fn acks_are_printed_as_json() {
        let (url, mut seen) = serve(vec![ack(1, 500), ack(501, 502)]).await;
        let paper = Paper::default();
        let shape = Shape::Data { event: None, key: None };
        let (done, acked) = publish_text(&url, "x\n".repeat(502), shape, paper.clone()).await;
        done.unwrap();
        assert_eq!(acked, 502);
        let printed = String::from_utf8(paper.0.lock().clone()).unwrap();
        assert_eq!(printed, "{\"first\":1,\"last\":500,\"count\":500}\n{\"first\":501,\"last\":502,\"count\":2}\n");
        assert!(seen.recv().await.unwrap().starts_with("POST /topics/t HTTP/1.1\r\n"));
        assert!(seen.recv().await.unwrap().ends_with("\r\n\r\n{\"data\":\"x\"}\n{\"data\":\"x\"}\n"));
    }

    #[tokio::test]
    async fn a_refusal_amid_the_lines_says_where_to_go_on() {
        let problem = r#"{"status":400,"code":"bad_json","detail":"line 2 has no data"}"#;
        let (url, _seen) =
            serve(vec![ack(1, 500), answer("400 Bad Request", "application/problem+json", problem)]).await;
        let text = "{\"data\":1}\n".repeat(501) + "{}\n";
        let (done, _) = publish_text(&url, text, Shape::Json, Paper::default()).await;
        assert_eq!(
            done.unwrap_err().to_string(),
            "the server refused: line 2 has no data (400 bad_json) (the batch's line 1 is line 501 of stdin); \
             500 events were acked; go on from line 501"
        );
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_said_to_be_one() {
        let (url, _seen) = serve(vec![String::new()]).await;
        let (done, _) =
            publish_text(&url, "a\nb\n".into(), Shape::Data { event: None, key: None }, Paper::default()).await;
        let said = done.unwrap_err().to_string();
        assert!(said.starts_with("the connection broke: "), "{said}");
        assert!(said.contains("; 0 events were acked; lines 1 to 2 may have been published too"), "{said}");
    }

    #[tokio::test]
    async fn a_closed_stdout_does_not_stop_publishing() {
        let (url, _seen) = serve(vec![ack(1, 500), ack(501, 502)]).await;
        let shape = Shape::Data { event: None, key: None };
        let (done, acked) = publish_text(&url, "x\n".repeat(502), shape, Paper(Arc::default(), true)).await;
        done.unwrap();
        assert_eq!(acked, 502);
    }

    #[tokio::test]
    async fn blank_json_lines_alone_are_not_sent() {
        let (url, mut seen) = serve(vec![]).await;
        let (done, acked) = publish_text(&url, "\n\n".into(), Shape::Json, Paper::default()).await;
        done.unwrap();
        assert_eq!(acked, 0);
        assert!(seen.try_recv().is_err());
    }

    #[tokio::test]
    async fn an_interruption_says_where_it_was() {
        let (reader, _writer) = io::pipe().unwrap();
        let client = Client::new("http://127.0.0.1:9").unwrap();
        let batches = Batches::new(reader, Shape::Json).unwrap();
        let mut told = Told { output: None, progress: None, acked: 0 };
        let stop = CancellationToken::new();
        stop.cancel();
        let done = publish_lines(&client, None, batches, &mut told, &stop).await;
        assert_eq!(done.unwrap_err().to_string(), "interrupted; 0 events were acked; go on from line 1");
    }
}
