//! What leaves a stream in one write: frames that have gathered, as one chunk of HTTP/1.1, and what of them a socket did not take.
//!
//! Small ones are copied together, since a short copy costs less than a list of slices; large ones leave from where they lie.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Result, Write as _};
use std::net::TcpStream;

use bytes::{Buf as _, Bytes};

/// Gathered bytes after which a chunk is full: as much as a piece of the ring or a read from disk gives, so a stalled socket holds less
/// than twice that, or one event more.
pub const WRITE_BYTES: usize = 64 << 10;

/// Up to so many bytes are copied.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Slices after which a chunk is full; the kernel takes 1,024 at once.
const SLICES_MAX: usize = 64;

/// The end of the body.
const LAST: &[u8] = b"0\r\n\r\n";

/// Frames that gather for one write. Used again and again.
#[derive(Default)]
pub struct Chunk {
    slices: Vec<Bytes>,
    bytes: usize,
    /// What comes before it, and then what is copied of it.
    copied: Vec<u8>,
}

impl Chunk {
    pub fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.slices.push(bytes);
    }

    /// Bytes that leave before it, as they are. To be called before all else.
    pub fn open(&mut self, opening: &[u8]) {
        self.copied.extend_from_slice(opening);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && self.copied.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= WRITE_BYTES || self.slices.len() >= SLICES_MAX
    }

    /// Bytes of frames in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes it as one chunk, with `last` followed by the body's end, and is empty again. What the socket does not take now is given
    /// back.
    ///
    /// # Errors
    /// When the connection has broken.
    pub fn write(&mut self, socket: &TcpStream, last: bool) -> Result<Unsent> {
        let written = if self.bytes <= COPY_BYTES_MAX {
            self.write_copied(socket, last)
        } else {
            self.write_slices(socket, last)
        };
        self.slices.clear();
        self.copied.clear();
        self.bytes = 0;
        written
    }

    fn write_copied(&mut self, socket: &TcpStream, last: bool) -> Result<Unsent> {
        if self.bytes > 0 {
            head(&mut self.copied, self.bytes);
            for slice in &self.slices {
                self.copied.extend_from_slice(slice);
            }
            self.copied.extend_from_slice(b"\r\n");
        }
        if last {
            self.copied.extend_from_slice(LAST);
        }
        let written = taken(|| (&*socket).write(&self.copied))?;
        let left = &self.copied[written..];
        let rest = if left.is_empty() { VecDeque::new() } else { VecDeque::from([Bytes::copy_from_slice(left)]) };
        Ok(Unsent(rest))
    }

    fn write_slices(&mut self, socket: &TcpStream, last: bool) -> Result<Unsent> {
        head(&mut self.copied, self.bytes);
        let mut all = Unsent(VecDeque::with_capacity(self.slices.len() + 2));
        all.0.push_back(Bytes::copy_from_slice(&self.copied));
        all.0.extend(self.slices.drain(..));
        all.0.push_back(Bytes::from_static(if last { b"\r\n0\r\n\r\n" } else { b"\r\n" }));
        all.write(socket)?;
        Ok(all)
    }
}

/// The size of a chunk, in hexadecimal.
fn head(out: &mut Vec<u8>, bytes: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = bytes;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left % 16];
        left /= 16;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// How many bytes a write took: none when the socket is full.
fn taken(mut write: impl FnMut() -> Result<usize>) -> Result<usize> {
    loop {
        match write() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            done => return done,
        }
    }
}

/// Bytes that are to be written before anything else.
#[derive(Debug, Default)]
pub struct Unsent(VecDeque<Bytes>);

impl Unsent {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes what the socket takes, and says how much that was.
    ///
    /// # Errors
    /// When the connection has broken.
    pub fn write(&mut self, socket: &TcpStream) -> Result<usize> {
        let slices: Vec<_> = self.0.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let written = taken(|| (&*socket).write_vectored(&slices))?;
        let mut left = written;
        while let Some(first) = self.0.front_mut()
            && left >= first.len()
        {
            left -= first.len();
            self.0.pop_front();
        }
        if let Some(first) = self.0.front_mut() {
            first.advance(left);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use socket2::SockRef;

    use super::*;

    /// Two ends with the smallest buffers that there are; the writer's does not block.
    fn narrow() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).set_recv_buffer_size(1).unwrap();
        let writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&writer).set_send_buffer_size(1).unwrap();
        writer.set_nonblocking(true).unwrap();
        (writer, listener.accept().unwrap().0)
    }

    #[test]
    fn what_a_socket_does_not_take_is_sent_later_and_nothing_is_lost() {
        let (writer, mut reader) = narrow();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let (mut chunk, mut expected, mut waits) = (Chunk::default(), Vec::new(), 0);
        let rounds =
            [vec![1], vec![10, 20], vec![4096], vec![4097], vec![1; 64], vec![70_000], vec![3000, 1, 5000], vec![]];
        for (round, sizes) in rounds.iter().enumerate() {
            let last = round == rounds.len() - 1;
            // Small, large, and without anything behind it but the end.
            if [0, 5, 7].contains(&round) {
                expected.extend(b"HTTP/1.1 200 OK\r\n\r\n");
                chunk.open(b"HTTP/1.1 200 OK\r\n\r\n");
                assert!(!chunk.is_empty());
            }
            let slices: Vec<Vec<u8>> =
                sizes.iter().map(|n| (0..*n).map(|at| u8::try_from(at % 251).unwrap()).collect()).collect();
            if !slices.is_empty() {
                expected.extend(format!("{:x}\r\n", sizes.iter().sum::<usize>()).into_bytes());
                expected.extend(slices.concat());
                expected.extend(b"\r\n");
            }
            for slice in slices {
                chunk.push(slice.into());
            }
            let mut unsent = chunk.write(&writer, last).unwrap();
            assert!(chunk.is_empty());
            while !unsent.is_empty() {
                waits += usize::from(unsent.write(&writer).unwrap() == 0);
                std::thread::yield_now();
            }
        }
        expected.extend(LAST);
        drop(writer);
        assert!(reader.join().unwrap() == expected);
        assert!(waits > 0, "the socket was full at times");
    }

    #[test]
    fn a_chunk_is_full_by_its_bytes_or_by_its_slices() {
        let mut chunk = Chunk::default();
        chunk.push(vec![0; WRITE_BYTES - 1].into());
        assert!(!chunk.is_full());
        chunk.push(vec![0].into());
        assert!(chunk.is_full());
        let mut chunk = Chunk::default();
        (0..SLICES_MAX).for_each(|_| chunk.push(Bytes::from_static(b"x")));
        assert!(chunk.is_full());
    }

    #[test]
    fn sizes_are_hexadecimal() {
        for n in [1, 9, 10, 255, 4096, usize::MAX] {
            let mut out = Vec::new();
            head(&mut out, n);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{n:x}\r\n"));
        }
    }

    #[test]
    fn a_broken_connection_is_told() {
        let (writer, reader) = narrow();
        SockRef::from(&reader).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(reader);
        let mut chunk = Chunk::default();
        chunk.push(vec![0; 10].into());
        assert!(chunk.write(&writer, false).is_err());
    }
}
