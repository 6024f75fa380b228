//! What publish to receive costs at least: a program that appends each message to a file, does fdatasync and sends it back over loopback.
//!
//! The one end is a program of its own, as the server is; the other measures, one message at a time.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a message, as many as the load generator publishes in this row.
pub const MESSAGE_BYTES: usize = 128;

/// No answer takes so long on a disk that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves until it is killed, one connection at a time.
pub fn serve(file: &Path) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("listening on http://{}", listener.local_addr()?);
    let mut file = File::create(file)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE_BYTES];
        while stream.read_exact(&mut message).is_ok() {
            file.write_all(&message)?;
            file.sync_data()?;
            stream.write_all(&message)?;
        }
    }
}

/// Sends `rounds` messages, one at a time; gives the milliseconds until each was back, ascending.
pub fn measure(server: SocketAddr, rounds: usize) -> std::io::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut took = Vec::with_capacity(rounds);
    let mut message = [b'x'; MESSAGE_BYTES];
    for _ in 0..rounds {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_unstable_by(f64::total_cmp);
    Ok(took)
}

/// The value that `percent` of the ascending values do not exceed.
pub fn percentile(ascending: &[f64], percent: usize) -> f64 {
    ascending.get((ascending.len().max(1) - 1) * percent / 100).copied().unwrap_or(f64::NAN)
}
