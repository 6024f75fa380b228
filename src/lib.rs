//! tidelog: Server-Sent Events with a persistent log.
//!
//! Events are published over HTTP, appended to a RocksDB log under one increasing id, and followed with `EventSource`, `curl` or
//! [`client`]. Whoever presents an id receives every retained matching event after it, ascending, each once: first out of the log,
//! then live, with no gap and no duplicate at the seam.
//!
//! # A log within a program
//!
//! [`Log`] is all of that without HTTP: open a directory, append, follow, ask for the state.
//!
//! ```
//! use tidelog::log::{Item, Options};
//! use tidelog::{Begin, BundleKind, Filter, Key, Log, NewEvent, Pattern, Topic};
//! use tokio_stream::StreamExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let directory = dir.path();
//! let log = Log::open(Options::new(directory))?;
//!
//! // Durable when this returns.
//! let event = |key: &str, data: &str| -> Result<_, Box<dyn std::error::Error>> {
//!     Ok(NewEvent { topic: Topic::parse("orders.eu")?, event: None, key: Some(Key::parse(key)?), data: data.into() })
//! };
//! let first = log.append(vec![event("7", "paid")?]).await?.first;
//! log.append(vec![event("7", "sent")?, event("8", "paid")?]).await?;
//!
//! // Everything after the first event, and then whatever comes.
//! let orders = || Filter::new(vec![Pattern::parse("orders.**").unwrap()], vec![]);
//! let mut items = log.follow(orders(), Begin::After(first)).await?;
//! for expected in ["sent", "paid"] {
//!     let Some(Item::Event(event)) = items.next().await.transpose()? else { panic!("an event") };
//!     assert_eq!(event.data, expected);
//! }
//! assert_eq!(items.next().await.transpose()?, Some(Item::Live { tail: 3 }));
//!
//! // The newest event of each key, and from there on live: nothing falls in between.
//! let state = log.state(&orders().into()).await?;
//! assert_eq!((state.as_of, state.entries.len()), (3, 2));
//! let mut bundled = log.follow(orders(), BundleKind::State).await?;
//! assert!(matches!(bundled.next().await.transpose()?, Some(Item::State(_))));
//!
//! log.trim(2).await?;
//! assert_eq!(log.earliest(), 3);
//! drop((items, bundled));
//! log.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embed` is a program with one.
//!
//! # The rooms
//!
//! From the ground up; a room imports only rooms below it:
//!
//! | floor | room | for |
//! | --- | --- | --- |
//! | 6 | [`server`] | sockets, HTTP/1.1 and HTTP/2, limits, drain |
//! | 5 | [`http`] | requests to calls and back |
//! | 4 | [`log`] | the face: append, subscribe, read, trim |
//! | 3 | [`sequencer`], [`subscription`] | the one writer; the reader |
//! | 2 | [`store`], [`hub`] | the past, on RocksDB; the present, in memory |
//! | 1 | [`sse`], [`record`] | bytes |
//! | 0 | [`event`], [`topic`] | words |
//! | – | [`config`], [`metrics`], [`sync`], [`client`] | beside |

pub use event::{Event, EventId, EventType, Key, NewEvent};
pub use log::{Begin, BundleKind, Log};
pub use topic::{Filter, Pattern, Topic};

pub mod client;
pub mod config;
pub mod event;
pub mod http;
pub mod hub;
pub mod log;
pub mod metrics;
pub mod record;
pub mod sequencer;
pub mod server;
pub mod sse;
pub mod store;
pub mod subscription;
pub mod sync;
pub mod topic;
