//! Moving bytes both ways until both sides have finished, one breaks, or the connection is cut.

use std::future::Future;
use std::io;

use bytes::{Bytes, BytesMut};
use netns::sockopt::reset_on_close;
use tokio::net::TcpStream;

use super::error::ConnectionError;
use crate::hbone::{HboneSink, HboneSource, HboneStream};
use crate::telemetry::Event;

/// The first read of a connection, in bytes; doubled while reads fill the buffer.
const SMALLEST_READ: usize = 4 * 1024;
/// One HTTP/2 frame with its header fills four TLS records exactly.
const LARGEST_READ: usize = 4 * 16_384 - 9;

/// Relays between the side that opened the connection, a socket in our pod, and a tunnel.
pub(super) async fn downstream_to_hbone(
    downstream: TcpStream,
    upstream: HboneStream,
    event: &Event,
    cut: impl Future<Output = ConnectionError>,
) -> Result<(), ConnectionError> {
    let (source, mut sink) = upstream.split();
    let relayed = {
        let up = tcp_to_hbone(&downstream, &mut sink, |n| event.received(n));
        let down = hbone_to_tcp(source, &downstream, |n| event.sent(n));
        both(up, down, cut).await
    };
    if relayed.is_err() {
        sink.reset();
        let _ = reset_on_close(&downstream); // closed already
    }
    relayed
}

/// Relays between a tunnel that a peer opened and a socket of the application.
pub(super) async fn hbone_to_upstream(
    downstream: HboneStream,
    upstream: TcpStream,
    event: &Event,
    cut: impl Future<Output = ConnectionError>,
) -> Result<(), ConnectionError> {
    let (source, mut sink) = downstream.split();
    let relayed = {
        let up = hbone_to_tcp(source, &upstream, |n| event.received(n));
        let down = tcp_to_hbone(&upstream, &mut sink, |n| event.sent(n));
        both(up, down, cut).await
    };
    if relayed.is_err() {
        sink.reset();
        let _ = reset_on_close(&upstream); // closed already
    }
    relayed
}

/// Relays between two sockets.
pub(super) async fn downstream_to_upstream(
    downstream: TcpStream,
    upstream: TcpStream,
    event: &Event,
    cut: impl Future<Output = ConnectionError>,
) -> Result<(), ConnectionError> {
    let relayed = {
        let up = tcp_to_tcp(&downstream, &upstream, |n| event.received(n));
        let down = tcp_to_tcp(&upstream, &downstream, |n| event.sent(n));
        both(up, down, cut).await
    };
    if relayed.is_err() {
        let _ = reset_on_close(&downstream); // closed already
        let _ = reset_on_close(&upstream);
    }
    relayed
}

async fn both(
    up: impl Future<Output = io::Result<()>>,
    down: impl Future<Output = io::Result<()>>,
    cut: impl Future<Output = ConnectionError>,
) -> Result<(), ConnectionError> {
    let relay = async { tokio::try_join!(up, down) };
    tokio::select! {
        done = relay => done.map(|_| ()).map_err(ConnectionError::from),
        why = cut => Err(why),
    }
}

async fn tcp_to_hbone(from: &TcpStream, to: &mut HboneSink, moved: impl Fn(usize)) -> io::Result<()> {
    let mut reader = Reader { from, size: SMALLEST_READ };
    while let Some(bytes) = reader.read().await? {
        moved(bytes.len());
        to.write(bytes).await?;
    }
    to.finish()
}

async fn hbone_to_tcp(mut from: HboneSource, to: &TcpStream, moved: impl Fn(usize)) -> io::Result<()> {
    while let Some(bytes) = from.read().await? {
        write_all(to, &bytes).await?;
        moved(bytes.len());
        // Only now: a peer may not have more under way than the application takes.
        from.consumed(bytes.len());
    }
    finish(to)
}

async fn tcp_to_tcp(from: &TcpStream, to: &TcpStream, moved: impl Fn(usize)) -> io::Result<()> {
    let mut reader = Reader { from, size: SMALLEST_READ };
    while let Some(bytes) = reader.read().await? {
        write_all(to, &bytes).await?;
        moved(bytes.len());
    }
    finish(to)
}

/// Reads into a buffer that exists only while there is something to read, so that idle connections hold none.
struct Reader<'a> {
    from: &'a TcpStream,
    size: usize,
}

impl Reader<'_> {
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            self.from.readable().await?;
            let mut buffer = BytesMut::with_capacity(self.size);
            match self.from.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    if n >= self.size {
                        self.size = (self.size * 2).min(LARGEST_READ);
                    } else if n < self.size / 4 {
                        self.size = (self.size / 2).max(SMALLEST_READ);
                    }
                    buffer.truncate(n);
                    return Ok(Some(buffer.freeze()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Half-close: nothing more will be written.
fn finish(to: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write) {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()), // the peer has finished, too
        done => done,
    }
}
