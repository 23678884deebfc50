//! A stream of a tunnel.

use std::future::Future;
use std::rc::Rc;

use byte_relay::{LastAnswer, StreamEnd};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::held::HeldBytes;
use crate::tunnel::StreamGuard;
use crate::{h2_engine, own_engine};

/// A bidirectional stream of bytes on a tunnel.
pub struct HboneStream {
    engine: Engine,
    /// Counts the stream as open, if this end has opened it.
    guard: Option<StreamGuard>,
}

/// What the stream's tunnel is made of.
pub(crate) enum Engine {
    H2(h2_engine::Stream),
    Own(own_engine::Stream),
}

/// A stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ByteStream for T {}

impl HboneStream {
    pub(crate) fn new(engine: Engine, guard: Option<StreamGuard>) -> Self {
        Self { engine, guard }
    }

    /// Relays between the stream and a socket of an application until both have finished,
    /// `Ok(None)`, or one has ended and the other was closed accordingly, `Ok(Some(end))`; until
    /// `last` ends the connection in order; or until `closed` completes, when both are reset. The
    /// stream is side A of `last`. `record_from_stream` and `record_from_app` are called with the
    /// number of bytes that the other side has accepted; `held` takes account of those that the
    /// application does not read.
    ///
    /// # Errors
    /// That of `closed`.
    pub async fn relay<E>(
        self,
        app: TcpStream,
        held: Rc<dyn HeldBytes>,
        record_from_stream: impl Fn(usize),
        record_from_app: impl Fn(usize),
        last: LastAnswer<'_>,
        closed: impl Future<Output = E>,
    ) -> Result<Option<StreamEnd>, E> {
        let Self { engine, guard } = self;
        let (up, down) = (record_from_stream, record_from_app);
        let relayed = match engine {
            Engine::H2(stream) => {
                let mut side = stream.into_side(held);
                byte_relay::relay_to_tcp(&mut side, app, up, down, last, closed).await
            }
            Engine::Own(stream) => {
                let mut side = stream.into_side(held);
                byte_relay::relay_to_tcp(&mut side, app, up, down, last, closed).await
            }
        };
        drop(guard);
        relayed
    }

    /// The number of bytes that fill a packet of the tunnel.
    pub(crate) fn write_size(&self) -> usize {
        match &self.engine {
            Engine::H2(stream) => stream.write_size(),
            Engine::Own(stream) => stream.write_size(),
        }
    }

    /// Converts into a stream for programs that read and write by themselves.
    pub fn into_io(self) -> Box<dyn ByteStream> {
        match self.engine {
            Engine::H2(stream) => Box::new(stream.into_io(self.guard)),
            Engine::Own(stream) => Box::new(stream.into_io(self.guard)),
        }
    }
}
