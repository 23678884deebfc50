//! The servers in the pods. Each has a port, and treats its clients in its own way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::connection::{pattern, read_pattern};
use super::scene::{FAULTY, PODS, Scene, name};
use super::tally::Tally;
use crate::sandbox::listen;

/// What a server sends before it half-closes the connection, in bytes; and what it expects then.
pub const LAST_WORDS: usize = 64 * 1024;

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Returns all data.
    Echo,
    /// Reads a number of milliseconds (one byte, in units of 20 ms), then nothing for this time,
    /// then everything, and returns how many bytes there were (eight bytes).
    Unread,
    /// Reads a byte and resets the connection.
    Resets,
    /// Sends [`LAST_WORDS`] and half-closes the connection, then expects as much.
    ClosesFirst,
    /// Returns all data; no client is ever allowed to connect to a pod of the mesh.
    Denied,
    /// Returns all data; a policy denies it from time to time.
    Cut,
}

impl Service {
    const ALL: [Self; 6] = [
        Self::Echo,
        Self::Unread,
        Self::Resets,
        Self::ClosesFirst,
        Self::Denied,
        Self::Cut,
    ];

    /// Its port in every pod.
    pub fn port(self) -> u16 {
        8080 + self as u16
    }

    /// Starts all servers in all pods, but those of faulty peers.
    pub fn start_all(scene: &Arc<Scene>, tally: &Arc<Tally>) {
        for pod in (0..PODS).filter(|pod| !FAULTY.contains(pod)) {
            for service in Self::ALL {
                let listener = listen(scene.pod(pod), service.port());
                listener.set_nonblocking(true).unwrap();
                let listener = TcpListener::from_std(listener).unwrap();
                let (scene, tally) = (scene.clone(), tally.clone());
                spawn_local(async move { service.serve(pod, listener, scene, tally).await });
            }
        }
    }

    async fn serve(self, pod: usize, listener: TcpListener, scene: Arc<Scene>, tally: Arc<Tally>) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let (scene, tally) = (scene.clone(), tally.clone());
            spawn_local(async move {
                let _connection = scene.applications.accept(pod);
                // Where a server's error shows that data was lost, the server says so.
                match self.answer(stream).await {
                    Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                        tally.fault(format!("server {self:?} in {}: {e}", name(pod)));
                    }
                    _ => {}
                }
            });
        }
    }

    async fn answer(self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        match self {
            Self::Echo | Self::Denied | Self::Cut => echo(&mut stream).await,
            Self::Unread => {
                let wait = stream.read_u8().await?;
                tokio::time::sleep(Duration::from_millis(20) * u32::from(wait)).await;
                let count = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
                stream.write_u64(count).await
            }
            Self::Resets => {
                stream.read_u8().await?;
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))
            }
            Self::ClosesFirst => {
                stream.write_all(&pattern(0, 0, LAST_WORDS)).await?;
                stream.shutdown().await?;
                read_pattern(&mut stream, 0, LAST_WORDS).await
            }
        }
    }
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}
