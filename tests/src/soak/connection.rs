//! The kinds of connections: what a client does on each, and what it expects.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use netns::NetNs;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::service::{LAST_WORDS, Service};
use crate::listener::connect_async;
use crate::sandbox::PATIENCE;

/// Most bytes of a bulk transfer.
const BULK: usize = 2 << 20;
/// Bytes for a server that does not read: more than fit into the buffers on the way.
const UNREAD: usize = 12 << 20;
/// How often a client that waits checks whether it should end.
const TICK: Duration = Duration::from_millis(20);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One exchange.
    Short,
    /// Exchanges for some seconds.
    Long,
    /// An exchange, nothing for some seconds, another exchange.
    Idle,
    /// Megabytes in both directions at once.
    Bulk,
    /// A thousand messages of a byte, without waiting for their echoes.
    OneByte,
    /// The client half-closes the connection after its data and reads the rest.
    HalfClosed,
    /// The server half-closes the connection after its data and reads the rest.
    ServerClosesFirst,
    /// The client resets the connection while data is under way.
    ClientResets,
    /// The server resets the connection.
    ServerResets,
    /// The server does not read for a while, and then reads everything.
    ReadLate,
    /// The server does not read, and the client leaves.
    NeverRead,
    /// A policy denies the connection.
    Denied,
    /// A policy may deny the connection at any time: all that is expected is that it ends.
    Cut,
}

impl Kind {
    /// All kinds, the frequent ones several times.
    pub const MIX: [Self; 18] = [
        Self::Short,
        Self::Short,
        Self::Short,
        Self::Short,
        Self::Long,
        Self::Idle,
        Self::Idle,
        Self::Bulk,
        Self::OneByte,
        Self::HalfClosed,
        Self::HalfClosed,
        Self::ServerClosesFirst,
        Self::ClientResets,
        Self::ServerResets,
        Self::ReadLate,
        Self::NeverRead,
        Self::Denied,
        Self::Cut,
    ];

    /// The service that it connects to.
    pub fn service(self) -> Service {
        match self {
            Self::ServerClosesFirst => Service::ClosesFirst,
            Self::ServerResets => Service::Resets,
            Self::ReadLate | Self::NeverRead => Service::Unread,
            Self::Denied => Service::Denied,
            Self::Cut => Service::Cut,
            _ => Service::Echo,
        }
    }

    /// Connects and does it; every step that hangs is an error. What waits without need ends early
    /// when `may_continue` is false.
    ///
    /// # Errors
    /// When something else happened than is expected, or nothing within [`PATIENCE`].
    pub async fn perform(
        self,
        from: &NetNs,
        to: SocketAddr,
        rng: &mut Rng,
        may_continue: &impl Fn() -> bool,
    ) -> io::Result<()> {
        let in_time = async {
            let connected = connect_async(from, to, None).await;
            match self {
                Self::Denied => return expect_denied(connected).await,
                Self::Cut => {
                    if let Ok(mut stream) = connected {
                        let _ = long(&mut stream, rng, may_continue).await;
                    }
                    return Ok(());
                }
                _ => {}
            }
            let mut stream = connected?;
            stream.set_nodelay(true)?;
            self.talk(&mut stream, rng, may_continue).await
        };
        timeout(PATIENCE, in_time).await?
    }

    async fn talk(
        self,
        stream: &mut TcpStream,
        rng: &mut Rng,
        may_continue: &impl Fn() -> bool,
    ) -> io::Result<()> {
        match self {
            Self::Short => exchange(stream, rng.usize(1..4096)).await,
            Self::Long => long(stream, rng, may_continue).await,
            Self::Idle => {
                exchange(stream, 1).await?;
                wait(Duration::from_millis(rng.u64(500..6000)), may_continue).await;
                exchange(stream, 1).await
            }
            Self::Bulk => duplex(stream, rng.usize(BULK / 8..BULK), 64 * 1024).await,
            Self::OneByte => duplex(stream, 1000, 1).await,
            Self::HalfClosed => {
                let length = rng.usize(1..64 * 1024);
                stream.write_all(&pattern(0, 0, length)).await?;
                stream.shutdown().await?;
                read_pattern(stream, 0, length).await
            }
            Self::ServerClosesFirst => {
                read_pattern(stream, 0, LAST_WORDS).await?;
                stream.write_all(&pattern(0, 0, LAST_WORDS)).await?;
                stream.shutdown().await
            }
            Self::ClientResets => {
                exchange(stream, 1).await?;
                let _ = stream.try_write(&pattern(0, 0, 256 * 1024));
                SockRef::from(&*stream).set_linger(Some(Duration::ZERO))
            }
            Self::ServerResets => {
                stream.write_u8(0).await?;
                match stream.read_u8().await {
                    Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(()),
                    other => Err(io::Error::other(format!("{other:?} instead of a reset"))),
                }
            }
            Self::ReadLate => {
                stream.write_u8(rng.u8(0..100)).await?;
                stream.write_all(&vec![0; UNREAD]).await?;
                stream.shutdown().await?;
                match stream.read_u64().await? {
                    count if count == UNREAD as u64 => Ok(()),
                    count => Err(invalid(format!("{count} of {UNREAD} bytes arrived"))),
                }
            }
            Self::NeverRead => {
                stream.write_u8(100).await?;
                let patience = Duration::from_millis(rng.u64(50..1000));
                let unread = stream.write_all(&[0; UNREAD]);
                let _ = timeout(patience, unread).await;
                Ok(())
            }
            Self::Denied | Self::Cut => Ok(()), // these may not even connect
        }
    }
}

/// Expects that no data arrives. The proxy may accept the connection before it is denied.
async fn expect_denied(connected: io::Result<TcpStream>) -> io::Result<()> {
    let Ok(mut stream) = connected else {
        return Ok(());
    };
    match exchange(&mut stream, 1).await {
        Ok(()) => Err(invalid("a denied connection was served".to_owned())),
        Err(_) => Ok(()),
    }
}

async fn long(
    stream: &mut TcpStream,
    rng: &mut Rng,
    may_continue: &impl Fn() -> bool,
) -> io::Result<()> {
    for _ in 0..rng.usize(1..60) {
        exchange(stream, rng.usize(1..16 * 1024)).await?;
        if !may_continue() {
            break;
        }
        sleep(Duration::from_millis(rng.u64(1..200))).await;
    }
    Ok(())
}

/// Waits, or until `may_continue` is false.
async fn wait(time: Duration, may_continue: &impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + time;
    while may_continue() && tokio::time::Instant::now() < until {
        sleep(TICK).await;
    }
}

/// Sends a message and expects it back.
async fn exchange(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    let message = pattern(length as u8, 0, length);
    stream.write_all(&message).await?;
    let mut echoed = vec![0; length];
    stream.read_exact(&mut echoed).await?;
    if echoed == message {
        return Ok(());
    }
    Err(invalid("the echo is another one".to_owned()))
}

/// Sends data in pieces of this size while it comes back, and expects the end after it.
async fn duplex(stream: &mut TcpStream, length: usize, piece: usize) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    let send = async {
        for start in (0..length).step_by(piece) {
            let end = length.min(start + piece);
            to.write_all(&pattern(0, start, end - start)).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(send, read_pattern(&mut from, 0, length)).map(drop)
}

/// The bytes of a stream from `start` on.
pub fn pattern(seed: u8, start: usize, length: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ seed;
    (start..start + length).map(byte).collect()
}

/// Reads to the end, and expects these bytes.
///
/// # Errors
/// Those of read(2), and `InvalidData` when something else arrives, less or more.
pub async fn read_pattern(
    from: &mut (impl AsyncRead + Unpin),
    seed: u8,
    length: usize,
) -> io::Result<()> {
    let (mut at, mut data) = (0, vec![0; 64 * 1024]);
    loop {
        let count = from.read(&mut data).await?;
        if count == 0 {
            break;
        }
        if data[..count] != pattern(seed, at, count) {
            return Err(invalid(format!("other data than sent after byte {at}")));
        }
        at += count;
    }
    if at == length {
        return Ok(());
    }
    Err(invalid(format!("the end after {at} of {length} bytes")))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "short",
            Self::Long => "long",
            Self::Idle => "idle",
            Self::Bulk => "bulk",
            Self::OneByte => "one-byte messages",
            Self::HalfClosed => "half-closed by the client",
            Self::ServerClosesFirst => "half-closed by the server",
            Self::ClientResets => "reset by the client",
            Self::ServerResets => "reset by the server",
            Self::ReadLate => "read late",
            Self::NeverRead => "never read",
            Self::Denied => "denied",
            Self::Cut => "cut by a policy",
        })
    }
}
