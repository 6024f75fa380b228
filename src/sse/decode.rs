//! Bytes: Server-Sent Events read back in, for our own client.
