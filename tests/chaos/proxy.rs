//! A bad network: what passes between clients and the server through here is delayed, squeezed, cut to single bytes, held
//! back and broken off, at any byte.
//!
//! What holds: each connection's plan is drawn from the seed and its number, so a seed gives the same plans again (which client gets
//! which is for the scheduler); bytes are never changed, swapped or made up. Packet loss is not made here, as `tc netem` is in few kernels: a
//! program over TCP sees of it only latency, stalls and resets, and these are. It must not know HTTP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Below the ports that the system gives to outgoing connections: one of those could else be its own peer while nobody listens.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port on which nobody listens now, and that no outgoing connection is given.
pub fn free_address() -> SocketAddr {
    for _ in 0..1000 {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS)));
        if StdListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("all ports of {PORTS:?} are taken")
}

/// What is done to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// RST to both.
    Reset,
    /// FIN to both.
    Close,
    /// The server is told that its client sends no more; what it sends goes on.
    HalfCloseToServer,
    /// The client is told that the server sends no more; the server learns nothing.
    HalfCloseToClient,
    /// Nothing passes any more, and nobody is told: half-open.
    Vanish,
    /// The same, one way only.
    VanishUp,
    VanishDown,
    /// The server cannot be reached: RST at once.
    Unreachable,
    /// Nobody listens for a while.
    Refused,
    /// Single bytes, each in a segment of its own.
    SingleBytes,
    /// No byte for a while, then on.
    Stall,
    Latency,
    Bandwidth,
    SlowStart,
}

const FAULTS: usize = 14;

/// How many connections each fault was done to.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; FAULTS]);

impl Counts {
    fn count(&self, fault: Fault) {
        self.0[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize].load(Ordering::Relaxed)
    }
}

pub const ALL: [Fault; FAULTS] = [
    Fault::Reset,
    Fault::Close,
    Fault::HalfCloseToServer,
    Fault::HalfCloseToClient,
    Fault::Vanish,
    Fault::VanishUp,
    Fault::VanishDown,
    Fault::Unreachable,
    Fault::Refused,
    Fault::SingleBytes,
    Fault::Stall,
    Fault::Latency,
    Fault::Bandwidth,
    Fault::SlowStart,
];

/// One way of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// Before each piece, and so much more at most.
    latency: Duration,
    jitter: Duration,
    bytes_per_second: Option<u32>,
    /// So many of the first bytes go one by one.
    singly: usize,
    /// Before this byte nothing passes for so long.
    stall: Option<(usize, Duration)>,
    /// It is broken off before this byte.
    end: Option<usize>,
}

#[derive(Debug)]
struct Plan {
    unreachable: bool,
    slow_start: Duration,
    up: Pace,
    down: Pace,
    /// It is broken off then at the latest, also between two frames.
    life: Duration,
    how: Fault,
    /// How long a half of it goes on.
    hold: Duration,
    rng: Rng,
}

/// Bytes at which something happens: most often early, as heads and first frames are what most can be wrong with.
fn some_byte(rng: &mut Rng) -> usize {
    let magnitude = rng.u32(4..17);
    rng.usize(..1 << magnitude)
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

impl Plan {
    fn draw(seed: u64, number: u64) -> Self {
        // Spread, as neighbouring seeds give similar first numbers.
        let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let how = match rng.u8(..20) {
            0..8 => Fault::Reset,
            8..12 => Fault::Close,
            12..14 => Fault::HalfCloseToServer,
            14..16 => Fault::HalfCloseToClient,
            16 | 17 => Fault::Vanish,
            18 => Fault::VanishUp,
            _ => Fault::VanishDown,
        };
        let pace = |rng: &mut Rng| {
            let mut pace = Pace::default();
            match rng.u8(..10) {
                0 => (pace.latency, pace.jitter) = (millis(rng, 1..40), millis(rng, 1..20)),
                1 => pace.bytes_per_second = Some(rng.u32(2_000..200_000)),
                2 | 3 => pace.singly = some_byte(rng).min(2_000),
                4 => pace.stall = Some((some_byte(rng).min(3_000), millis(rng, 50..1_200))),
                _ => {}
            }
            pace
        };
        let (mut up, mut down) = (pace(&mut rng), pace(&mut rng));
        match rng.u8(..5) {
            // Within a request: its head, or the body of a publish.
            0 => up.end = Some(rng.usize(..600)),
            1..3 => down.end = Some(some_byte(&mut rng)),
            _ => {}
        }
        Self {
            unreachable: rng.u8(..40) == 0,
            slow_start: if rng.u8(..20) == 0 { millis(&mut rng, 20..400) } else { Duration::ZERO },
            up,
            down,
            life: millis(&mut rng, 5..700),
            how,
            hold: millis(&mut rng, 100..3_000),
            rng,
        }
    }

    /// Nothing is done to it.
    fn calm(mut self) -> Self {
        (self.unreachable, self.slow_start) = (false, Duration::ZERO);
        (self.up, self.down, self.life) = (Pace::default(), Pace::default(), Duration::from_secs(3600));
        self
    }

    fn tell(&self, counts: &Counts) {
        if !self.slow_start.is_zero() {
            counts.count(Fault::SlowStart);
        }
        for pace in [self.up, self.down] {
            if pace.singly > 0 {
                counts.count(Fault::SingleBytes);
            }
            if pace.stall.is_some() {
                counts.count(Fault::Stall);
            }
            if !pace.latency.is_zero() {
                counts.count(Fault::Latency);
            }
            if pace.bytes_per_second.is_some() {
                counts.count(Fault::Bandwidth);
            }
        }
    }
}

pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    seed: u64,
    server: SocketAddr,
    /// Nothing more is broken.
    calm: AtomicBool,
    counts: Counts,
    connections: AtomicU64,
}

impl Proxy {
    /// Between `server` and whoever connects to [`Proxy::addr`]. Within a runtime.
    pub fn start(seed: u64, server: SocketAddr) -> Self {
        let addr = free_address();
        let listener = bind(addr).expect("nobody listened there a moment ago");
        let (calm, counts, connections) = (AtomicBool::new(false), Counts::default(), AtomicU64::new(0));
        let shared = Arc::new(Shared { seed, server, calm, counts, connections });
        tokio::spawn(listen(listener, addr, shared.clone()));
        Self { addr, shared }
    }

    /// Leaves connections in peace from now on; those whose end had begun end.
    pub fn be_calm(&self) {
        self.shared.calm.store(true, Ordering::Relaxed);
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = StdListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn listen(mut listener: TcpListener, addr: SocketAddr, shared: Arc<Shared>) {
    let mut rng = Rng::with_seed(shared.seed);
    loop {
        let peace = sleep(millis(&mut rng, 500..2_500));
        tokio::pin!(peace);
        loop {
            tokio::select! {
                () = &mut peace => break,
                accepted = listener.accept() => if let Ok((client, _)) = accepted {
                    let number = shared.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(client, Plan::draw(shared.seed, number), shared.clone()));
                },
            }
        }
        if shared.calm.load(Ordering::Relaxed) {
            continue;
        }
        shared.counts.count(Fault::Refused);
        drop(listener);
        sleep(millis(&mut rng, 20..200)).await;
        listener = loop {
            match bind(addr) {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        };
    }
}

fn reset(socket: TcpStream) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    drop(socket);
}

async fn serve(mut client: TcpStream, plan: Plan, shared: Arc<Shared>) {
    let plan = if shared.calm.load(Ordering::Relaxed) { plan.calm() } else { plan };
    if plan.unreachable {
        shared.counts.count(Fault::Unreachable);
        return reset(client);
    }
    plan.tell(&shared.counts);
    if !plan.slow_start.is_zero() {
        sleep(plan.slow_start).await;
    }
    let Ok(mut server) = TcpStream::connect(shared.server).await else { return reset(client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut up, mut down) = (Way::new(plan.up, &plan.rng), Way::new(plan.down, &plan.rng));
    let broken = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        tokio::select! {
            ended = up.pump(&mut from_client, &mut to_server) => ended,
            ended = down.pump(&mut from_server, &mut to_client) => ended,
            () = sleep(plan.life) => End::Cut,
        }
    };
    match broken {
        // One of them went by itself, and the other is told in the same way.
        End::Gone => {}
        End::Broken => {
            reset(client);
            reset(server);
        }
        End::Cut => {
            shared.counts.count(plan.how);
            cut((client, up), (server, down), plan.how, plan.hold).await;
        }
    }
}

/// What passed is not to have a hole: a way that goes on does so where it was.
async fn cut(
    (mut client, mut up): (TcpStream, Way),
    (mut server, mut down): (TcpStream, Way),
    how: Fault,
    hold: Duration,
) {
    up.pace.end = None;
    down.pace.end = None;
    match how {
        Fault::Reset => {
            reset(client);
            reset(server);
        }
        Fault::HalfCloseToServer | Fault::VanishUp => {
            if how == Fault::HalfCloseToServer {
                let _ = server.shutdown().await;
            }
            let _ = tokio::time::timeout(hold, down.pump(&mut server.split().0, &mut client.split().1)).await;
        }
        Fault::HalfCloseToClient | Fault::VanishDown => {
            if how == Fault::HalfCloseToClient {
                let _ = client.shutdown().await;
            }
            let _ = tokio::time::timeout(hold, up.pump(&mut client.split().0, &mut server.split().1)).await;
        }
        Fault::Vanish => sleep(hold).await,
        // Both are closed when they are let go.
        _ => {}
    }
}

/// How one way ended.
enum End {
    /// The one who sends has closed.
    Gone,
    Broken,
    /// The plan said so.
    Cut,
}

/// One way at work: left and taken up again at any await, it loses no byte.
struct Way {
    pace: Pace,
    rng: Rng,
    /// Read, and not passed on yet.
    held: Vec<u8>,
    passed: usize,
    stalled: bool,
}

impl Way {
    fn new(pace: Pace, rng: &Rng) -> Self {
        Self { pace, rng: rng.clone(), held: Vec::new(), passed: 0, stalled: false }
    }

    async fn pump(&mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> End {
        let mut bytes = vec![0; 16 << 10];
        loop {
            if self.pace.end == Some(self.passed) {
                return End::Cut;
            }
            if let Some((at, pause)) = self.pace.stall
                && at <= self.passed
                && !std::mem::replace(&mut self.stalled, true)
            {
                sleep(pause).await;
            }
            if self.held.is_empty() {
                match from.read(&mut bytes).await {
                    Ok(0) => return End::Gone,
                    Ok(n) => self.held.extend_from_slice(&bytes[..n]),
                    Err(_) => return End::Broken,
                }
                if !self.pace.latency.is_zero() {
                    sleep(self.pace.latency + self.pace.jitter.mul_f64(self.rng.f64())).await;
                }
            }
            // Nothing passes beyond where something happens.
            let mut most = if self.passed < self.pace.singly { 1 } else { self.held.len() };
            for at in [self.pace.end, self.pace.stall.map(|(at, _)| at)].into_iter().flatten() {
                if at > self.passed {
                    most = most.min(at - self.passed);
                }
            }
            let most = most.min(self.held.len());
            let Ok(n) = to.write(&self.held[..most]).await else { return End::Broken };
            self.held.drain(..n);
            self.passed += n;
            if let Some(rate) = self.pace.bytes_per_second {
                sleep(Duration::from_secs_f64(n as f64 / f64::from(rate))).await;
            }
        }
    }
}
