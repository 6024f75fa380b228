//! The head that comes again and again: a program that publishes sends the same one each time, but for the length of what comes with it.
//!
//! What holds: what is found to be the same is, byte for byte, so it need not be read a second time. Must not know sockets.

use std::ops::Range;

use super::head::BODY_BYTES_MAX;

/// A longer head is not kept: each connection of a lane may keep one, and what it asks for, which is little more than parts of it. curl's
/// has 160 bytes; the rest is for tokens, and what proxies add.
const HEAD_BYTES_MAX: usize = 2 * 1024;

/// A head, and what it asks for.
pub struct Repeat<K> {
    /// Up to the digits of its `Content-Length`.
    before: Box<[u8]>,
    /// From behind them.
    after: Box<[u8]>,
    known: K,
}

impl<K> Repeat<K> {
    /// Keeps `head`, of which `length_at` are the digits of its `Content-Length`; `None` when it is too long.
    pub fn of(head: &[u8], length_at: Range<usize>, known: K) -> Option<Self> {
        let (before, after) = (head.get(..length_at.start)?, head.get(length_at.end..)?);
        (head.len() <= HEAD_BYTES_MAX).then(|| Self { before: before.into(), after: after.into(), known })
    }

    /// When `bytes` begin with the same head, of `head_bytes_max` at the most: what it asks for, and where its body lies, which may end
    /// beyond them.
    pub fn again(&self, bytes: &[u8], head_bytes_max: usize) -> Option<(&K, Range<usize>)> {
        let from_length = bytes.strip_prefix(&*self.before)?;
        let digits = from_length.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (length, rest) = from_length.split_at(digits);
        rest.starts_with(&self.after).then_some(())?;
        let length: usize =
            std::str::from_utf8(length).ok()?.parse().ok().filter(|length| *length <= BODY_BYTES_MAX)?;
        let body_at = self.before.len() + digits + self.after.len();
        let body = body_at..body_at + length;
        (body_at <= head_bytes_max).then_some((&self.known, body))
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::{self, Head, Look};
    use super::*;

    fn repeat(text: &str) -> Option<Repeat<()>> {
        let Look::Plain(Head { body_at, length_at, .. }) = head::look(text.as_bytes(), usize::MAX, true) else {
            panic!("it is plain")
        };
        Repeat::of(&text.as_bytes()[..body_at], length_at, ())
    }

    #[test]
    fn a_head_comes_again_with_another_body() {
        let post = |length: &str, body: &str| {
            format!("POST /t?x=5 HTTP/1.1\r\nHost: h\r\nContent-Length: {length} \r\nX: 5\r\n\r\n{body}")
        };
        let known = repeat(&post("5", "hello")).unwrap();
        let again = |text: &str| {
            let ((), body) = known.again(text.as_bytes(), usize::MAX)?;
            Some(text.get(body).unwrap_or("to come").to_owned())
        };
        for (length, body) in [("5", "again"), ("0", ""), ("12", "a longer one"), ("0003", "abc")] {
            assert_eq!(again(&post(length, body)).as_deref(), Some(body));
            assert_eq!(again(&post(length, &format!("{body}POST /t"))).as_deref(), Some(body), "more may follow");
        }
        let text = post("5", "hello");
        for n in 0..text.len() {
            let known = (n >= text.len() - 5).then_some("to come");
            assert_eq!(again(&text[..n]).as_deref(), known, "{n} bytes are not all of it");
        }
    }

    #[test]
    fn another_head_is_not_the_same() {
        let known = repeat("POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX: 1\r\n\r\nhello").unwrap();
        for other in [
            "POST /u HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX: 2\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX: 1\r\nY: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\ncontent-length: 5\r\nX: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5 \r\nX: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: \r\nX: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\nX: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\nX: 1\r\n\r\nhello",
            "POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\nX: 1\r\n\r\nhello",
        ] {
            assert!(known.again(other.as_bytes(), usize::MAX).is_none(), "{other}");
        }
        let longest = |n: usize| {
            let body = "x".repeat(n);
            known
                .again(
                    format!("POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\nX: 1\r\n\r\n{body}").as_bytes(),
                    usize::MAX,
                )
                .is_some()
        };
        assert!(longest(BODY_BYTES_MAX) && !longest(BODY_BYTES_MAX + 1));
    }

    #[test]
    fn a_longer_length_makes_no_head_that_is_too_long() {
        let post = |length: &str| format!("POST /t HTTP/1.1\r\nContent-Length: {length}\r\n\r\n0123456789");
        let (known, max) = (repeat(&post("5")).unwrap(), post("5").len() - 10);
        assert!(known.again(post("9").as_bytes(), max).is_some());
        assert!(known.again(post("10").as_bytes(), max).is_none());
        assert!(known.again(post("10").as_bytes(), max + 1).is_some());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let head = |n: usize| format!("POST /t HTTP/1.1\r\nContent-Length: 0\r\nX: {}\r\n\r\n", "x".repeat(n));
        let beside = head(0).len();
        assert!(repeat(&head(HEAD_BYTES_MAX - beside)).is_some());
        assert!(repeat(&head(HEAD_BYTES_MAX - beside + 1)).is_none());
    }
}
