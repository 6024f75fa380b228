//! Lines from stdin, gathered into batches.
//!
//! What holds: every line comes out once, in order, numbered from 1; memory is bounded by the constants below. A thread reads,
//! because a read from a terminal or a pipe blocks; it is never joined, so that the program can end while it waits. Must not
//! know where batches are sent.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use tidelog::event::{EventType, Key};
use tidelog::sse::json_string;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Most lines of a batch.
pub const BATCH_LINES_MAX: u64 = 500;
/// Most bytes of a batch, unless its only line has more.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long a batch waits for more lines after its first.
const BATCH_WAIT: Duration = Duration::from_millis(50);
/// Most bytes of a line: as many as a batch may have by the server's defaults.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Reads that wait to be batched; each has the lines that ended in it, so at most one long line.
const READS_MAX: usize = 4;

/// Why the input cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("cannot read stdin: {0}")]
    Read(#[from] io::Error),
    #[error("line {0} of stdin is not UTF-8")]
    NotUtf8(u64),
    #[error("line {0} of stdin has more than {LINE_BYTES_MAX} bytes")]
    TooLong(u64),
    #[error("stdin is not UTF-8")]
    WholeNotUtf8,
    #[error("stdin has more than {LINE_BYTES_MAX} bytes")]
    WholeTooLong,
}

/// What a line of the input means.
#[derive(Debug, Clone)]
pub enum Shape {
    /// It is the data of an event with this type and key.
    Data { event: Option<EventType>, key: Option<Key> },
    /// It is a JSON line already.
    Json,
}

/// JSON lines to publish together.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    pub lines: Vec<u8>,
    /// The number of its first line in the input; its n-th line is the input's line `first + n - 1`.
    pub first: u64,
    pub last: u64,
    /// Whether it has nothing but blank lines, which the server refuses.
    pub is_blank: bool,
}

type Lines = Result<Vec<String>, InputError>;

/// The input, batch by batch.
pub struct Batches {
    reads: mpsc::Receiver<Lines>,
    /// Lines that have been read and are in no batch yet.
    waiting: VecDeque<String>,
    /// What came after them.
    failed: Option<InputError>,
    /// The number of the first of those lines.
    next: u64,
    shape: Shape,
}

impl Batches {
    /// Begins to read.
    pub fn new(input: impl Read + Send + 'static, shape: Shape) -> io::Result<Self> {
        let (read, reads) = mpsc::channel(READS_MAX);
        thread::Builder::new().name("input".into()).spawn(move || {
            if let Err(error) = read_lines(input, &read) {
                // Nobody listens any more: then nobody needs to know.
                let _ = read.blocking_send(Err(error));
            }
        })?;
        Ok(Self { reads, waiting: VecDeque::new(), failed: None, next: 1, shape })
    }

    /// The lines that are waiting, as many as a batch can have; `None` at the end of the input. When it is dropped before it is
    /// done, lines are lost.
    pub async fn next(&mut self) -> Result<Option<Batch>, InputError> {
        let mut batch = Batch { lines: Vec::new(), first: self.next, last: self.next, is_blank: true };
        let mut until = None;
        loop {
            while let Some(line) = self.waiting.pop_front() {
                if is_full(&batch, &line) {
                    self.waiting.push_front(line);
                    return Ok(Some(batch));
                }
                self.add(&mut batch, &line);
                until.get_or_insert_with(|| Instant::now() + BATCH_WAIT);
            }
            if self.failed.is_some() && !batch.lines.is_empty() {
                return Ok(Some(batch));
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            let read = match until {
                None => self.reads.recv().await,
                Some(until) => match timeout_at(until, self.reads.recv()).await {
                    Ok(read) => read,
                    Err(_) => return Ok(Some(batch)),
                },
            };
            match read {
                Some(Ok(lines)) => self.waiting.extend(lines),
                Some(Err(error)) => self.failed = Some(error),
                None => return Ok(Some(batch).filter(|batch| !batch.lines.is_empty())),
            }
        }
    }

    fn add(&mut self, batch: &mut Batch, line: &str) {
        batch.last = self.next;
        self.next += 1;
        match &self.shape {
            Shape::Json => {
                batch.is_blank &= line.trim_ascii().is_empty();
                batch.lines.extend_from_slice(line.as_bytes());
            }
            Shape::Data { event, key } => {
                batch.is_blank = false;
                batch.lines.push(b'{');
                for (name, value) in
                    [("event", event.as_ref().map(EventType::as_str)), ("key", key.as_ref().map(Key::as_str))]
                {
                    if let Some(value) = value {
                        json_string(&mut batch.lines, name);
                        batch.lines.push(b':');
                        json_string(&mut batch.lines, value);
                        batch.lines.push(b',');
                    }
                }
                batch.lines.extend_from_slice(b"\"data\":");
                json_string(&mut batch.lines, line);
                batch.lines.push(b'}');
            }
        }
        batch.lines.push(b'\n');
    }
}

/// Whether `line` belongs to the next batch. As data it grows when it is written as JSON; so a batch can exceed its bytes by what
/// escapes add, six times at most, which is still below what servers take.
fn is_full(batch: &Batch, line: &str) -> bool {
    let has_lines = !batch.lines.is_empty();
    has_lines && (batch.last - batch.first + 1 >= BATCH_LINES_MAX || batch.lines.len() + line.len() >= BATCH_BYTES_MAX)
}

/// Reads to the end, or until nobody listens.
fn read_lines(mut input: impl Read, read: &mpsc::Sender<Lines>) -> Result<(), InputError> {
    let mut buffer = vec![0; READ_BYTES];
    let mut partial = Vec::new();
    let mut number = 1;
    loop {
        let count = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        let (mut lines, mut failed) = (Vec::new(), None);
        let mut rest = &buffer[..count];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            partial.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            match take_line(&mut partial, number) {
                Ok(line) => lines.push(line),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            number += 1;
        }
        partial.extend_from_slice(rest);
        if failed.is_none() && partial.len() > LINE_BYTES_MAX {
            failed = Some(InputError::TooLong(number));
        }
        if failed.is_none() && count == 0 && !partial.is_empty() {
            match take_line(&mut partial, number) {
                Ok(line) => lines.push(line),
                Err(error) => failed = Some(error),
            }
        }
        if !lines.is_empty() && read.blocking_send(Ok(lines)).is_err() {
            return Ok(());
        }
        match failed {
            Some(error) => return Err(error),
            None if count == 0 => return Ok(()),
            None => {}
        }
    }
}

/// A complete line without its ending, LF or CRLF.
fn take_line(partial: &mut Vec<u8>, number: u64) -> Result<String, InputError> {
    let mut line = std::mem::take(partial);
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    if line.len() > LINE_BYTES_MAX {
        return Err(InputError::TooLong(number));
    }
    String::from_utf8(line).map_err(|_| InputError::NotUtf8(number))
}

/// Reads all of the input as one text.
pub fn read_whole(input: impl Read) -> Result<String, InputError> {
    let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut whole = Vec::new();
    input.take(limit + 1).read_to_end(&mut whole)?;
    if whole.len() > LINE_BYTES_MAX {
        return Err(InputError::WholeTooLong);
    }
    String::from_utf8(whole).map_err(|_| InputError::WholeNotUtf8)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::cli::testing::PATIENCE;

    fn data() -> Shape {
        Shape::Data { event: None, key: None }
    }

    async fn all(input: impl Read + Send + 'static, shape: Shape) -> (Vec<Batch>, Option<String>) {
        let mut batches = Batches::new(input, shape).unwrap();
        let mut got = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, batches.next()).await.unwrap() {
                Ok(Some(batch)) => got.push(batch),
                Ok(None) => return (got, None),
                Err(error) => return (got, Some(error.to_string())),
            }
        }
    }

    fn text(batch: &Batch) -> &str {
        std::str::from_utf8(&batch.lines).unwrap()
    }

    #[tokio::test]
    async fn each_line_is_an_event() {
        let shape = Shape::Data { event: EventType::parse("t").unwrap(), key: Some(Key::parse("\"").unwrap()) };
        let (got, error) = all(&b"a\r\n\n\"b\"\nlast"[..], shape).await;
        assert_eq!(error, None);
        let [batch] = &got[..] else { panic!("{got:?}") };
        assert_eq!((batch.first, batch.last, batch.is_blank), (1, 4, false));
        let line = |data| format!("{{\"event\":\"t\",\"key\":\"\\\"\",\"data\":{data}}}\n");
        assert_eq!(text(batch), [r#""a""#, r#""""#, r#""\"b\"""#, r#""last""#].map(line).concat());
    }

    #[tokio::test]
    async fn json_lines_are_passed_on_with_their_numbers() {
        let (got, _) = all(&b"{\"data\":1}\n\n{\"data\":2}\n"[..], Shape::Json).await;
        assert_eq!(text(&got[0]), "{\"data\":1}\n\n{\"data\":2}\n");
        assert_eq!((got[0].last, got[0].is_blank), (3, false));
        let (got, _) = all(&b"\n \n"[..], Shape::Json).await;
        assert!(got[0].is_blank);
        let (got, error) = all(&b""[..], data()).await;
        assert!(got.is_empty() && error.is_none());
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_lines_and_bytes() {
        let (got, _) = all(io::Cursor::new("x\n".repeat(1200)), data()).await;
        let ranges: Vec<_> = got.iter().map(|batch| (batch.first, batch.last)).collect();
        assert_eq!((ranges[0], ranges.last().unwrap().1), ((1, 500), 1200));
        assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{ranges:?}");

        let lines = ["x".repeat(400 << 10), "y".repeat(3 << 20), "z".into()].join("\n");
        let (got, _) = all(io::Cursor::new(lines), data()).await;
        let ranges: Vec<_> = got.iter().map(|batch| (batch.first, batch.last)).collect();
        assert_eq!(ranges, [(1, 1), (2, 2), (3, 3)]);
    }

    #[tokio::test]
    async fn what_is_waiting_goes_without_what_is_not() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut batches = Batches::new(reader, data()).unwrap();
        for number in 1..=2 {
            writer.write_all(b"a\n").unwrap();
            let batch = tokio::time::timeout(PATIENCE, batches.next()).await.unwrap().unwrap().unwrap();
            assert_eq!((batch.first, batch.last), (number, number));
        }
        drop(writer);
        assert_eq!(batches.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_bad_line_is_named_after_the_good_ones() {
        let (got, error) = all(&b"a\nb\n\xff\nc\n"[..], data()).await;
        assert_eq!((got[0].first, got[0].last, got.len()), (1, 2, 1));
        assert_eq!(error.unwrap(), "line 3 of stdin is not UTF-8");
        let endless = io::repeat(b'x');
        let (got, error) = all(io::Cursor::new("a\n").chain(endless), data()).await;
        assert_eq!((got.len(), got[0].last), (1, 1));
        assert!(error.unwrap().starts_with("line 2 of stdin has more than"));
    }

    #[test]
    fn the_whole_is_bounded_and_utf8() {
        assert_eq!(read_whole(&b"a\r\nb\n"[..]).unwrap(), "a\r\nb\n");
        assert!(matches!(read_whole(io::repeat(b'x')), Err(InputError::WholeTooLong)));
        assert!(matches!(read_whole(&b"\xff"[..]), Err(InputError::WholeNotUtf8)));
    }
}
