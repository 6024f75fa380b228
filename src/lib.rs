//! tidelog: Server-Sent Events with a persistent log.
//!
//! Events are published over HTTP, appended to a RocksDB log under one increasing id, and followed with `EventSource`, `curl` or
//! [`client`]. Whoever presents an id receives every retained matching event after it, ascending, each once: first out of the log,
//! then live, with no gap and no duplicate at the seam.
//!
//! The rooms, from the ground up; a room imports only rooms below it:
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
//! | – | [`config`], [`metrics`], [`client`] | beside |

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
pub mod topic;
