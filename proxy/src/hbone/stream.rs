//! One stream of a tunnel, as a source and a sink of bytes.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

/// A stream in both directions.
pub(crate) struct HboneStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
}

/// What the peer sends.
pub(crate) struct HboneSource(RecvStream);

/// What we send to the peer.
pub(crate) struct HboneSink(SendStream<Bytes>);

impl HboneStream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv }
    }

    pub(super) fn into_parts(self) -> (SendStream<Bytes>, RecvStream) {
        (self.send, self.recv)
    }

    /// Both directions apart.
    pub(crate) fn split(self) -> (HboneSource, HboneSink) {
        (HboneSource(self.recv), HboneSink(self.send))
    }
}

impl HboneSource {
    /// The next bytes, never empty; `None` when the peer has finished.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.0.data().await {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Ok(Some(bytes)),
                // A peer that has sent everything may end its stream this way.
                Some(Err(e)) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => return Ok(None),
                Some(Err(e)) => return Err(into_io(e)),
                None => return Ok(None),
            }
        }
    }

    /// These bytes have been passed on: the peer may send as many more.
    pub(crate) fn consumed(&mut self, bytes: usize) {
        // Fails only when the stream is over, and then nothing more will come.
        let _ = self.0.flow_control().release_capacity(bytes);
    }
}

impl HboneSink {
    /// Sends bytes; returns when the tunnel has taken all of them.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            self.0.reserve_capacity(bytes.len());
            let granted = match self.0.capacity() {
                0 => match poll_fn(|cx| self.0.poll_capacity(cx)).await {
                    Some(granted) => granted.map_err(into_io)?,
                    None => return Err(io::ErrorKind::BrokenPipe.into()),
                },
                granted => granted,
            };
            if granted > 0 {
                let chunk = bytes.split_to(granted.min(bytes.len()));
                self.0.send_data(chunk, false).map_err(into_io)?;
            }
        }
        Ok(())
    }

    /// Nothing more will be sent.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.0.send_data(Bytes::new(), true).map_err(into_io)
    }

    /// Ends both directions as a TCP reset does (RFC 9113 section 8.5).
    pub(crate) fn reset(&mut self) {
        self.0.send_reset(Reason::CONNECT_ERROR);
    }
}

pub(super) fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe };
    io::Error::new(kind, error)
}
