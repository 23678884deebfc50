//! What the caller sends.

use http::{HeaderMap, StatusCode};

use super::core::Core;
use crate::config::Role;
use crate::error::{ErrorCode, StreamId};
use crate::frame::{FrameHead, write};
use crate::head::{request_fields, response_fields};
use crate::hpack::Field;
use crate::stream::Phase;

/// Tokens of [`crate::limits::Patience`] for a stream that was opened or answered: its peer may
/// reset it, and open windows.
const STREAM_EARNS: u64 = 4;
/// The same for a DATA frame, and for as many bytes.
const DATA_EARNS: u64 = 16;
const BYTES_EARN: u32 = 1024;

/// Why no stream was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many streams are open as are allowed.
    #[error("as many streams are open as the peer or the configuration allows")]
    NoRoom,
    /// The connection closes: use another one.
    #[error("the connection accepts no more streams")]
    Closing,
    /// The headers exceed the limit of the peer.
    #[error("the request headers are larger than the peer accepts")]
    HeadTooLarge,
}

/// Why nothing was sent on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream is closed, or not in a state in which this may be sent.
    #[error("the stream is closed for sending")]
    Closed,
    /// More data than [`crate::Connection::capacity`] allows.
    #[error("more data than the windows and the frame size of the peer allow")]
    NoCapacity,
    /// Frames wait in [`crate::Connection::output`], which must precede DATA.
    #[error("other frames must be sent first")]
    OutputPending,
}

impl Core {
    /// As [`crate::Connection::max_streams`].
    pub(super) fn max_streams(&self) -> u32 {
        if self.is_draining() || self.failure.is_some() || self.next_id > StreamId::MAX.0 {
            return 0;
        }
        let of_peer = self.peer.max_streams.unwrap_or(u32::MAX);
        of_peer.min(self.config.max_streams)
    }

    /// As [`crate::Connection::open`].
    pub(super) fn open(
        &mut self,
        authority: &str,
        headers: &HeaderMap,
    ) -> Result<StreamId, OpenError> {
        let is_closing = self.is_draining() || self.failure.is_some();
        if self.role == Role::Server || is_closing || self.next_id > StreamId::MAX.0 {
            return Err(OpenError::Closing);
        }
        if self.open_streams() >= self.max_streams() as usize {
            return Err(OpenError::NoRoom);
        }
        let size = request_fields(authority, headers).map(|field| field.size());
        let size: usize = size.sum();
        let limit = self.peer.max_header_list;
        if limit.is_some_and(|limit| size > limit as usize) {
            return Err(OpenError::HeadTooLarge);
        }
        let id = StreamId(self.next_id);
        self.next_id += 2;
        self.insert_stream(id);
        self.write_head(id, request_fields(authority, headers), false);
        Ok(id)
    }

    /// As [`crate::Connection::respond`].
    pub(super) fn respond(
        &mut self,
        id: StreamId,
        status: StatusCode,
        headers: &HeaderMap,
        end_stream: bool,
    ) -> Result<(), SendError> {
        let is_server = self.role == Role::Server;
        let stream = self.streams.get_mut(&id).ok_or(SendError::Closed)?;
        if !is_server || stream.is_answered || !stream.can_send() || status.is_informational() {
            return Err(SendError::Closed);
        }
        stream.is_answered = true;
        if end_stream {
            stream.finish_local();
        }
        self.write_head(id, response_fields(&status, headers), end_stream);
        Ok(())
    }

    fn write_head<'a>(
        &mut self,
        id: StreamId,
        fields: impl IntoIterator<Item = Field<'a>>,
        end_stream: bool,
    ) {
        let mut block = Vec::with_capacity(512);
        self.encoder.encode(&mut block, fields);
        write::headers(&mut self.out, id, &block, end_stream, self.peer.max_frame);
        self.patience.earn(STREAM_EARNS);
    }

    /// As [`crate::Connection::can_send`].
    pub(super) fn can_send(&self, id: StreamId) -> bool {
        let must_answer = self.role == Role::Server;
        let stream = self.streams.get(&id);
        stream.is_some_and(|stream| stream.can_send() && (stream.is_answered || !must_answer))
    }

    /// As [`crate::Connection::capacity`].
    pub(super) fn capacity(&mut self, id: StreamId) -> u32 {
        if !self.can_send(id) {
            return 0;
        }
        let available = self.send_window.available();
        let Some(stream) = self.streams.get_mut(&id) else {
            return 0;
        };
        let available = available.min(stream.send.available());
        stream.wants_credit = available == 0;
        available.min(self.peer.max_frame)
    }

    /// As [`crate::Connection::data_head`].
    pub(super) fn data_head(
        &mut self,
        id: StreamId,
        length: u32,
        end_stream: bool,
    ) -> Result<[u8; FrameHead::SIZE], SendError> {
        if !self.out.is_empty() {
            return Err(SendError::OutputPending);
        }
        if !self.can_send(id) {
            return Err(SendError::Closed);
        }
        let stream = self.streams.get_mut(&id).ok_or(SendError::Closed)?;
        let available = self.send_window.available().min(stream.send.available());
        if length > available.min(self.peer.max_frame) {
            return Err(SendError::NoCapacity);
        }
        stream.send.consume(length);
        self.send_window.consume(length);
        if end_stream {
            stream.finish_local();
        }
        self.last_sender = id;
        self.patience
            .earn(DATA_EARNS + u64::from(length / BYTES_EARN));
        Ok(write::data_head(id, length, end_stream))
    }

    /// As [`crate::Connection::release`].
    pub(super) fn release(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get(&id) {
            let code = match stream.phase {
                Phase::HalfClosedLocal => ErrorCode::NO_ERROR,
                _ => ErrorCode::CANCEL,
            };
            self.reset_stream(id, code);
            self.forget(id);
        }
    }
}
