//! tidelog: Server-Sent Events with a persistent log.

pub mod event;
pub mod record;
pub mod sse;
pub mod topic;
