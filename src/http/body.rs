//! Reading a request's body: at most so many bytes, within so much time, out of a budget that all bodies share.
//!
//! What holds: memory for bodies never exceeds the budget, whatever clients send. Must not know what bodies mean.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes_max: u64,
    /// What the limit is called in the configuration, and what it is a limit of.
    pub what: &'static str,
    pub option: &'static str,
    /// From the request's head to the body's last byte.
    pub time: Duration,
}

/// The bytes that all bodies together may take.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

/// A body, and its share of the budget: it is given back when this is dropped.
#[derive(Debug)]
pub struct Read {
    pub bytes: Vec<u8>,
    pub share: Share,
}

/// A share of the budget.
#[derive(Debug)]
pub struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Reads `body` to its end.
    ///
    /// # Errors
    /// When it is too large (judged by `Content-Length` before anything is read), too slow, broken, or the budget is spent.
    pub async fn read<B>(&self, headers: &HeaderMap, body: B, bounds: Bounds) -> Result<Read, Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        sent_as_it_is(headers)?;
        let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|n| n > bounds.bytes_max) {
            return Err(too_large(bounds));
        }
        match tokio::time::timeout(bounds.time, self.collect(body, declared, bounds)).await {
            Ok(read) => read,
            Err(_) => Err(Error::Slow(bounds.time)),
        }
    }

    /// Takes a body that is there.
    ///
    /// # Errors
    /// When it is too large, or the budget is spent.
    pub fn take(&self, body: &[u8], bounds: Bounds) -> Result<Read, Error> {
        if body.len() as u64 > bounds.bytes_max {
            return Err(too_large(bounds));
        }
        let share = Some(self.share(body.len())?);
        Ok(Read { bytes: body.to_vec(), share: Share { _permit: share } })
    }

    fn share(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let share = u32::try_from(bytes).ok().and_then(|n| self.0.clone().try_acquire_many_owned(n).ok());
        share.ok_or(Error::Overloaded("too many bodies are being read"))
    }

    async fn collect<B>(&self, mut body: B, declared: Option<u64>, bounds: Bounds) -> Result<Read, Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        // What is declared is not believed beyond this: memory is taken as bytes come.
        const RESERVED_MAX: u64 = 64 * 1024;
        let reserved = usize::try_from(declared.unwrap_or(0).min(RESERVED_MAX)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(reserved);
        let mut share: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Error::Header {
                name: "Content-Length or Transfer-Encoding",
                why: format!("the body could not be read to its end: {error}"),
            })?;
            // Trailers say nothing that is asked for.
            let Ok(chunk) = frame.into_data() else { continue };
            if (bytes.len() + chunk.len()) as u64 > bounds.bytes_max {
                return Err(too_large(bounds));
            }
            let more = self.share(chunk.len())?;
            match &mut share {
                None => share = Some(more),
                Some(share) => share.merge(more),
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Read { bytes, share: Share { _permit: share } })
    }
}

/// Whether a body comes as it is, and not packed.
///
/// # Errors
/// When it does not.
pub fn sent_as_it_is(headers: &HeaderMap) -> Result<(), Error> {
    let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"))
    else {
        return Ok(());
    };
    let why = format!("{encoding:?} is not supported; send the body as it is");
    Err(Error::Header { name: "Content-Encoding", why })
}

fn too_large(bounds: Bounds) -> Error {
    Error::TooLarge { what: bounds.what, max: bounds.bytes_max, option: bounds.option }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use std::convert::Infallible;

    const BOUNDS: Bounds =
        Bounds { bytes_max: 10, what: "the body", option: "limits.x", time: Duration::from_secs(10) };

    async fn read(budget: &Budget, headers: &[(&str, &str)], body: &'static [u8]) -> Result<Read, Error> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(hyper::header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        budget.read(&map, Full::new(Bytes::from_static(body)), BOUNDS).await
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        let budget = Budget::new(100);
        assert_eq!(read(&budget, &[], b"0123456789").await.unwrap().bytes, b"0123456789");
        assert_eq!(read(&budget, &[], b"").await.unwrap().bytes, b"");
        assert!(matches!(read(&budget, &[], b"0123456789a").await, Err(Error::TooLarge { .. })));
        // By what it declares, before a byte of it is read.
        assert!(matches!(read(&budget, &[("content-length", "11")], b"").await, Err(Error::TooLarge { .. })));
        assert!(matches!(read(&budget, &[("content-encoding", "gzip")], b"").await, Err(Error::Header { .. })));
        assert!(read(&budget, &[("content-encoding", "Identity")], b"").await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_is_there_has_the_same_bounds() {
        let budget = Budget::new(15);
        assert_eq!(budget.take(b"0123456789", BOUNDS).unwrap().bytes, b"0123456789");
        assert!(matches!(budget.take(b"0123456789a", BOUNDS), Err(Error::TooLarge { .. })));
        let held = budget.take(b"0123456789", BOUNDS).unwrap();
        assert!(matches!(budget.take(b"012345", BOUNDS), Err(Error::Overloaded(_))));
        assert_eq!(budget.take(b"", BOUNDS).unwrap().bytes, b"");
        drop(held);
        assert!(budget.take(b"012345", BOUNDS).is_ok());
    }

    #[tokio::test]
    async fn bodies_share_a_budget_for_as_long_as_they_are_held() {
        let budget = Budget::new(15);
        let held = read(&budget, &[], b"0123456789").await.unwrap();
        assert!(matches!(read(&budget, &[], b"012345").await, Err(Error::Overloaded(_))));
        drop(held);
        assert!(read(&budget, &[], b"012345").await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let body = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let bounds = Bounds { time: Duration::ZERO, ..BOUNDS };
        let read = Budget::new(100).read(&HeaderMap::new(), body, bounds).await;
        assert!(matches!(read, Err(Error::Slow(_))));
    }
}
