//! Requests, responses and trailers of the peer.

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::config::Role;
use crate::error::{ErrorCode, ProtocolError, StreamId, Violation};
use crate::event::{Change, Event};
use crate::frame::write;
use crate::head::{FieldList, response_fields};
use crate::stream::Phase;

/// Maximum number of frames of a header block.
const MAX_PARTS: u32 = 32;

/// A header block that is not complete.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Block {
    stream: StreamId,
    end_stream: bool,
    bytes: Vec<u8>,
    parts: u32,
}

impl Core {
    pub(super) fn begin_headers(
        &mut self,
        stream: StreamId,
        end_stream: bool,
        end_headers: bool,
        fragment: &[u8],
        now_ms: u64,
    ) -> Result<Option<Event>, ProtocolError> {
        if end_headers {
            return self.receive_block(stream, end_stream, fragment, now_ms);
        }
        self.block = Some(Block {
            stream,
            end_stream,
            bytes: fragment.to_vec(),
            parts: 1,
        });
        Ok(None)
    }

    pub(super) fn continue_headers(
        &mut self,
        stream: StreamId,
        end_headers: bool,
        fragment: &[u8],
        now_ms: u64,
    ) -> Result<Option<Event>, ProtocolError> {
        let mut block = self.block.take().ok_or(Violation::InterruptedHeaders)?;
        if block.stream != stream {
            return Err(Violation::InterruptedHeaders.into());
        }
        block.bytes.extend_from_slice(fragment);
        block.parts += 1;
        let max_block = self.config.max_header_block() as usize;
        if block.bytes.len() > max_block || block.parts > MAX_PARTS {
            return Err(Violation::HeaderBlockTooLong.into());
        }
        if end_headers {
            return self.receive_block(stream, block.end_stream, &block.bytes, now_ms);
        }
        self.block = Some(block);
        Ok(None)
    }

    /// Handles a complete block. Each must be decoded, or later ones could not be.
    fn receive_block(
        &mut self,
        id: StreamId,
        end_stream: bool,
        block: &[u8],
        now_ms: u64,
    ) -> Result<Option<Event>, ProtocolError> {
        let mut fields = FieldList::default();
        let (max_fields, max_size) = (self.config.max_fields, self.config.max_header_list);
        let decoded = self.decoder.decode(block, |field| {
            fields.add(field, max_fields, max_size);
        });
        decoded.map_err(|_| Violation::InvalidCompression)?;
        if self.role == Role::Server && !id.0.is_multiple_of(2) && id > self.last_of_peer {
            return self.receive_request(id, end_stream, fields, now_ms);
        }
        if self.is_idle(id) {
            return Err(Violation::UnexpectedStream.into());
        }
        let of_stream = |violation| ProtocolError::Stream(id, violation);
        let (phase, is_answered) = match self.streams.get(&id) {
            Some(stream) => (stream.phase, stream.is_answered),
            None => (Phase::Reset, false),
        };
        if phase == Phase::Reset {
            self.patience.spend(now_ms)?; // the peer may not know yet
            Ok(None)
        } else if !phase.can_receive() {
            Err(of_stream(Violation::StreamClosed))
        } else if self.role == Role::Client && !is_answered {
            self.receive_response(id, end_stream, fields, now_ms)
        } else if !end_stream {
            Err(of_stream(Violation::MalformedHead))
        } else {
            fields.check_trailers().map_err(of_stream)?;
            self.receive_end(id);
            Ok(None)
        }
    }

    fn receive_request(
        &mut self,
        id: StreamId,
        end_stream: bool,
        fields: FieldList,
        now_ms: u64,
    ) -> Result<Option<Event>, ProtocolError> {
        self.last_of_peer = id;
        if self.drain.is_refused(id) {
            self.patience.spend(now_ms)?;
            return Ok(None); // the client knows by the GOAWAY
        }
        let of_stream = |violation| ProtocolError::Stream(id, violation);
        let limit = self.config.max_streams as usize;
        // Also a limit on closed streams that the caller has not released yet.
        if self.open_streams() >= limit || self.streams.len() >= limit.saturating_mul(2) {
            return Err(of_stream(Violation::TooManyStreams));
        }
        let head = match fields.into_request() {
            Err(Violation::HeaderListTooLarge) => {
                self.patience.spend(now_ms)?;
                self.refuse_large_request(id);
                return Ok(None);
            }
            head => head.map_err(of_stream)?,
        };
        self.insert_stream(id);
        if end_stream {
            self.receive_end(id);
        }
        Ok(Some(Event::Request { id, head }))
    }

    fn refuse_large_request(&mut self, id: StreamId) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let mut block = Vec::new();
        let headers = HeaderMap::new();
        self.encoder
            .encode(&mut block, response_fields(&status, &headers));
        write::headers(&mut self.out, id, &block, true, self.peer.max_frame);
        write::reset(&mut self.out, id, ErrorCode::NO_ERROR);
    }

    fn receive_response(
        &mut self,
        id: StreamId,
        end_stream: bool,
        fields: FieldList,
        now_ms: u64,
    ) -> Result<Option<Event>, ProtocolError> {
        let of_stream = |violation| ProtocolError::Stream(id, violation);
        let head = fields.into_response().map_err(of_stream)?;
        if head.status.is_informational() {
            if end_stream {
                return Err(of_stream(Violation::MalformedHead));
            }
            self.patience.spend(now_ms)?;
            return Ok(None);
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_answered = true;
        }
        if end_stream {
            self.receive_end(id);
        }
        Ok(Some(Event::Response { id, head }))
    }

    fn receive_end(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.finish_remote();
            self.report(id, Change::Ended);
        }
    }
}
