//! The server side of gRPC: a length before each message, a status at the end.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Response};
use prost::Message;

/// The messages from the client.
pub(super) struct Incoming {
    body: RecvStream,
    buffer: BytesMut,
}

impl Incoming {
    pub(super) fn new(body: RecvStream) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
        }
    }

    /// The next message; `None` at the end.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(header) = self.buffer.get(..5) {
                let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Some(M::decode(self.buffer.split_to(length)).unwrap());
                }
            }
            let data = self.body.data().await?.ok()?;
            let _ = self.body.flow_control().release_capacity(data.len());
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// The messages to the client. As by many servers, the head is sent with the first message.
pub(super) struct Outgoing {
    respond: Option<SendResponse<Bytes>>,
    stream: Option<SendStream<Bytes>>,
}

impl Outgoing {
    pub(super) fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            respond: Some(respond),
            stream: None,
        }
    }

    /// Sends a message.
    pub(super) fn send(&mut self, message: &impl Message) {
        self.send_framed(message.encoded_len(), message.encode_to_vec().into());
    }

    /// Sends a length and these bytes, which may be fewer.
    pub(super) fn send_framed(&mut self, length: usize, bytes: Bytes) {
        let mut header = BytesMut::with_capacity(5);
        header.put_u8(0); // not compressed
        header.put_u32(u32::try_from(length).unwrap());
        let stream = self.stream();
        let _ = stream.send_data(header.freeze(), false); // the client may have left
        let _ = stream.send_data(bytes, false);
    }

    /// Ends with a status.
    pub(super) fn end(&mut self, status: u32, message: &str) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.into());
        trailers.insert("grpc-message", message.parse().unwrap());
        let _ = self.stream().send_trailers(trailers); // the client may have left
    }

    fn stream(&mut self) -> &mut SendStream<Bytes> {
        if let Some(mut respond) = self.respond.take() {
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            self.stream = Some(respond.send_response(head, false).unwrap());
        }
        self.stream.as_mut().unwrap()
    }
}
