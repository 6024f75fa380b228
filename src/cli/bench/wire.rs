//! Answers as they come off a socket: the HTTP/1.1 head, the body out of its chunks, and the events or marks in it.
//!
//! What holds: however the bytes are cut into reads, the same comes out; nothing is copied but what a read has cut in two. Must not
//! know sockets, nor what the events are for.

use memchr::{memchr, memmem};

use super::mark::{Found, LENGTH, Mark, find};

/// Most bytes of a head or of a line that was cut by a read; the largest event of a default server is 1 MiB and its line seven
/// times that at worst.
const CARRY_MAX: usize = 16 << 20;
/// Bytes that are kept of an answer that refuses.
const REFUSAL_MAX: usize = 2000;

/// What is looked for in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Frames of Server-Sent Events: ids, types, and the mark in the data.
    Frames,
    /// Marks, wherever they are.
    Marks,
    Nothing,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    #[default]
    Event,
    /// `tidelog.live`.
    Live,
    /// `tidelog.gap`.
    Gap,
    /// `tidelog.error`; its text is in [`Wire::refusal`].
    Error,
    /// Any other of `tidelog.*`.
    Control,
}

/// A frame, or a mark where only those are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frame {
    pub kind: Kind,
    pub id: Option<u64>,
    pub mark: Option<Mark>,
}

/// What came is no HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a head that is not HTTP/1.1")]
    Head,
    #[error("a chunk without a length")]
    Chunk,
    #[error("a line of more than 16 MiB")]
    Long,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// In the line that tells the length of a chunk; `over`: past the digits.
    Size {
        size: u64,
        digits: bool,
        over: bool,
    },
    Chunk(u64),
    ChunkEnd,
    /// After the last chunk; whether the line is still empty.
    Trailer(bool),
    Sized(u64),
    UntilClosed,
    Done,
}

/// What a refusal says (RFC 9457).
#[derive(serde::Deserialize)]
struct Problem {
    detail: String,
    code: String,
}

/// One connection's answers.
#[derive(Debug)]
pub struct Wire {
    state: State,
    look: Look,
    /// What a read has cut: of the head, a line, or a mark.
    carry: Vec<u8>,
    status: u16,
    closes: bool,
    frame: Frame,
    has_data: bool,
    /// The text of a refusal.
    refusal: Vec<u8>,
}

impl Wire {
    pub fn new(look: Look) -> Self {
        Self {
            state: State::Head,
            look,
            carry: Vec::new(),
            status: 0,
            closes: false,
            frame: Frame::default(),
            has_data: false,
            refusal: Vec::new(),
        }
    }

    /// Is ready for another answer on the same connection.
    pub fn next(&mut self) {
        let (carry, refusal) = (std::mem::take(&mut self.carry), std::mem::take(&mut self.refusal));
        *self = Self { carry, refusal, ..Self::new(self.look) };
        self.carry.clear();
        self.refusal.clear();
    }

    /// The status, once the head is there.
    pub fn status(&self) -> Option<u16> {
        (self.state != State::Head).then_some(self.status)
    }

    /// Whether the whole answer is there.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the answer is whole if the connection ends here.
    pub fn may_end(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClosed)
    }

    /// Whether the server will close the connection after this answer.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// What the server said instead of doing what it was asked; `None` when it did not refuse.
    pub fn refusal(&self) -> Option<String> {
        let is_refused = self.status().is_some_and(|status| !(200..300).contains(&status));
        if !is_refused && self.refusal.is_empty() {
            return None;
        }
        let said = match serde_json::from_slice(&self.refusal) {
            Ok(Problem { detail, code }) => format!("{detail} ({code})"),
            Err(_) => String::from_utf8_lossy(&self.refusal).trim().to_owned(),
        };
        Some(format!("{} {said}", self.status).trim_end().to_owned())
    }

    /// Takes the next bytes in; `take` gets what is complete.
    pub fn feed(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&Frame)) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match self.state {
                State::Head => return self.head(bytes, take),
                State::Size { .. } => bytes = self.size(bytes)?,
                State::Chunk(left) => {
                    let (data, rest) = split(bytes, left);
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    self.body(data, take)?;
                    bytes = rest;
                }
                State::ChunkEnd => {
                    let end = memchr(b'\n', bytes);
                    if end.is_some() {
                        self.state = State::Size { size: 0, digits: false, over: false };
                    }
                    if end.unwrap_or(bytes.len()) > 1 {
                        return Err(Malformed::Chunk);
                    }
                    bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
                }
                State::Trailer(is_empty) => {
                    self.state = match bytes[0] {
                        b'\n' if is_empty => State::Done,
                        b'\n' => State::Trailer(true),
                        b'\r' => State::Trailer(is_empty),
                        _ => State::Trailer(false),
                    };
                    bytes = &bytes[1..];
                }
                State::Sized(left) => {
                    let (data, rest) = split(bytes, left);
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Sized(left) };
                    self.body(data, take)?;
                    bytes = rest;
                }
                State::UntilClosed => return self.body(bytes, take),
                // Nothing was asked for: what comes is nobody's.
                State::Done => return Ok(()),
            }
        }
        Ok(())
    }

    fn head(&mut self, bytes: &[u8], take: &mut impl FnMut(&Frame)) -> Result<(), Malformed> {
        const END: &[u8] = b"\r\n\r\n";
        if self.carry.is_empty()
            && let Some(end) = memmem::find(bytes, END)
        {
            self.read_head(&bytes[..end + 2])?;
            return self.feed(&bytes[end + END.len()..], take);
        }
        self.keep(bytes)?;
        let Some(end) = memmem::find(&self.carry, END) else { return Ok(()) };
        let carry = std::mem::take(&mut self.carry);
        self.read_head(&carry[..end + 2])?;
        self.feed(&carry[end + END.len()..], take)
    }

    fn read_head(&mut self, head: &[u8]) -> Result<(), Malformed> {
        let status = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "));
        let status = status.and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok());
        self.status = status.ok_or(Malformed::Head)?;
        let is = |name, word: &str| header(head, name).is_some_and(|value| value.eq_ignore_ascii_case(word));
        self.closes = is("connection", "close");
        self.state = if matches!(self.status, 204 | 304) {
            State::Done
        } else if is("transfer-encoding", "chunked") {
            State::Size { size: 0, digits: false, over: false }
        } else if let Some(length) = header(head, "content-length") {
            match length.parse().map_err(|_| Malformed::Head)? {
                0 => State::Done,
                length => State::Sized(length),
            }
        } else {
            State::UntilClosed
        };
        Ok(())
    }

    /// Reads of the line with a chunk's length what is there, and gives what is after it.
    fn size<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Malformed> {
        let State::Size { mut size, mut digits, mut over } = self.state else { return Ok(bytes) };
        for (at, &byte) in bytes.iter().enumerate() {
            let digit = char::from(byte).to_digit(16);
            match (byte, digit) {
                (b'\n', _) if digits => {
                    self.state = if size == 0 { State::Trailer(true) } else { State::Chunk(size) };
                    return Ok(&bytes[at + 1..]);
                }
                (_, Some(digit)) if !over => {
                    digits = true;
                    size = size.checked_mul(16).ok_or(Malformed::Chunk)? + u64::from(digit);
                }
                _ if digits => over = true,
                _ => return Err(Malformed::Chunk),
            }
        }
        self.state = State::Size { size, digits, over };
        Ok(&[])
    }

    fn body(&mut self, bytes: &[u8], take: &mut impl FnMut(&Frame)) -> Result<(), Malformed> {
        if !(200..300).contains(&self.status) {
            let room = REFUSAL_MAX.saturating_sub(self.refusal.len()).min(bytes.len());
            self.refusal.extend_from_slice(&bytes[..room]);
            return Ok(());
        }
        match self.look {
            Look::Frames => self.lines(bytes, take),
            Look::Marks => {
                self.marks(bytes, take);
                Ok(())
            }
            Look::Nothing => Ok(()),
        }
    }

    fn lines(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&Frame)) -> Result<(), Malformed> {
        if !self.carry.is_empty() {
            let Some(end) = memchr(b'\n', bytes) else { return self.keep(bytes) };
            self.keep(&bytes[..end])?;
            let mut carry = std::mem::take(&mut self.carry);
            self.line(&carry, take);
            carry.clear();
            self.carry = carry;
            bytes = &bytes[end + 1..];
        }
        while let Some(end) = memchr(b'\n', bytes) {
            self.line(&bytes[..end], take);
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes)
    }

    fn line(&mut self, line: &[u8], take: &mut impl FnMut(&Frame)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let value = |rest: &'_ [u8]| rest.strip_prefix(b" ").map_or(rest.len(), <[u8]>::len);
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                take(&self.frame);
            }
            self.frame = Frame::default();
        } else if let Some(rest) = line.strip_prefix(b"data:") {
            self.has_data = true;
            let data = &rest[rest.len() - value(rest)..];
            if self.frame.kind == Kind::Error {
                self.refusal.extend_from_slice(&data[..data.len().min(REFUSAL_MAX)]);
            } else if self.frame.mark.is_none() && self.frame.kind == Kind::Event {
                self.frame.mark = Mark::read(data).or_else(|| Mark::find(data));
            }
        } else if let Some(rest) = line.strip_prefix(b"id:") {
            self.frame.id = std::str::from_utf8(&rest[rest.len() - value(rest)..]).ok().and_then(|id| id.parse().ok());
        } else if let Some(rest) = line.strip_prefix(b"event:") {
            self.frame.kind = match &rest[rest.len() - value(rest)..] {
                b"tidelog.live" => Kind::Live,
                b"tidelog.gap" => Kind::Gap,
                b"tidelog.error" => Kind::Error,
                kind if kind.starts_with(b"tidelog.") => Kind::Control,
                _ => Kind::Event,
            };
        }
    }

    fn marks(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&Frame)) {
        if !self.carry.is_empty() {
            // Enough to complete whatever mark begins in what was kept.
            let (kept, more) = (self.carry.len(), bytes.len().min(LENGTH - 1));
            self.carry.extend_from_slice(&bytes[..more]);
            let mut carry = std::mem::take(&mut self.carry);
            let on = scan(&carry, take);
            if more == bytes.len() {
                carry.drain(..on);
                self.carry = carry;
                return;
            }
            bytes = &bytes[on.saturating_sub(kept)..];
            carry.clear();
            self.carry = carry;
        }
        let on = scan(bytes, take);
        self.carry.extend_from_slice(&bytes[on..]);
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.carry.extend_from_slice(bytes);
        if self.carry.len() > CARRY_MAX { Err(Malformed::Long) } else { Ok(()) }
    }
}

/// Gives every mark; and from where on the bytes are to be kept for the next read.
fn scan(bytes: &[u8], take: &mut impl FnMut(&Frame)) -> usize {
    let mut from = 0;
    loop {
        match find(bytes, from) {
            Found::Mark(mark, end) => {
                take(&Frame { mark: Some(mark), ..Frame::default() });
                from = end;
            }
            Found::Begun(at) => return at,
            Found::Nothing => return bytes.len(),
        }
    }
}

/// The first of `bytes`, at most `most`, and the rest.
fn split(bytes: &[u8], most: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len()))
}

/// A header of a head.
pub fn header<'h>(head: &'h [u8], name: &str) -> Option<&'h str> {
    head.split(|&byte| byte == b'\n').find_map(|line| {
        let (is, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        is.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests;
