//! Where there is no epoll there is no wire: hyper serves all streams.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{Fresh, GiveBack};

/// There is none.
pub enum Wire {}

impl Wire {
    /// # Errors
    /// Always.
    pub fn start(_: usize, _: Duration, _: &Handle, _: &Arc<GiveBack>) -> Result<Self> {
        Err(Error::from(ErrorKind::Unsupported))
    }

    pub fn take(&self, _: Fresh) {
        match *self {}
    }

    pub fn stop(&self) {
        match *self {}
    }
}
