//! A connection after its handshake.

use std::mem;
use std::ops::Range;

use crate::alert::Alert;
use crate::deframe;
use crate::error::{InvalidState, RecordError, SealError};
use crate::open::{Content, Opener};
use crate::outgoing::Outgoing;
use crate::post_handshake::{KeyUpdate, PostHandshake};
use crate::seal::{MAX_RECORDS, Sealer};
use crate::state::{RecordState, Role};
use crate::suite::Suite;

/// Maximum number of records in a row without application data: empty ones, tickets, key updates.
/// rustls and BoringSSL allow as many key updates.
const MAX_WITHOUT_DATA: u8 = 32;

/// The record layer of a connection: what is received becomes data, and data becomes bytes to send.
///
/// * Receiving: [`restore`](Self::restore) the bytes that were kept into the read buffer, read more
///   behind them, call [`receive`](Self::receive) until it needs more, and [`hold`](Self::hold) the
///   rest. When the stream ends, call [`end_of_input`](Self::end_of_input).
/// * Sending: [`seal`](Self::seal) data, then send what [`outgoing`](Self::outgoing) has. Receiving
///   fills it as well, with alerts.
pub struct RecordLayer {
    suite: Suite,
    role: Role,
    sealer: Sealer,
    opener: Opener,
    messages: PostHandshake,
    outgoing: Outgoing,
    held: Vec<u8>,
    /// Records since the last one with application data.
    without_data: u8,
    /// The peer requested a key update, which must precede the next data.
    owes_key_update: bool,
    sent_close: bool,
    received_close: bool,
    failed: Option<RecordError>,
}

/// Progress of [`RecordLayer::receive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Number of bytes at the front of the input that are done with, once the event is.
    pub consumed: usize,
    /// What was received.
    pub event: Event,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Application data, in this range of the input. It is never empty.
    Data(Range<usize>),
    /// The input does not contain another whole record.
    NeedMore,
    /// The peer sent `close_notify`. Nothing follows; sending is still possible.
    Closed,
}

impl RecordLayer {
    /// Opens records at the front of `input` in place, up to the next event. Key updates and
    /// tickets are no events.
    ///
    /// # Errors
    /// After an error, the alert for the peer is in [`outgoing`](Self::outgoing), and every further
    /// call returns the same error.
    pub fn receive(&mut self, input: &mut [u8]) -> Result<Received, RecordError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.open(input).inspect_err(|error| {
            if let (Some(alert), false) = (error.alert(), self.sent_close) {
                // The only obstacle can be exhausted keys, and the connection ends anyway.
                let _ = self.sealer.alert(alert, &mut self.outgoing);
            }
            self.failed = Some(*error);
        })
    }

    fn open(&mut self, input: &mut [u8]) -> Result<Received, RecordError> {
        let mut consumed = 0;
        while !self.received_close {
            let Some(length) = deframe::record_length(&input[consumed..])? else {
                let event = Event::NeedMore;
                return Ok(Received { consumed, event });
            };
            let begin = consumed;
            consumed += length;
            let record = &mut input[begin..consumed];
            let (content, range) = self.opener.open(record)?;
            if content == Content::Data && !range.is_empty() && !self.messages.is_incomplete() {
                self.without_data = 0;
                let event = Event::Data(begin + range.start..begin + range.end);
                return Ok(Received { consumed, event });
            }
            self.without_data += 1;
            if self.without_data > MAX_WITHOUT_DATA {
                return Err(RecordError::TooManyWithoutData);
            }
            self.control(content, &input[begin + range.start..begin + range.end])?;
        }
        // What follows close_notify is ignored (RFC 8446, section 6.1).
        Ok(Received {
            consumed: input.len(),
            event: Event::Closed,
        })
    }

    /// Handles a record without application data.
    fn control(&mut self, content: Content, bytes: &[u8]) -> Result<(), RecordError> {
        if content == Content::Handshake {
            if let Some(update) = self.messages.receive(self.role, bytes)? {
                self.opener.update();
                self.owes_key_update |= update == KeyUpdate::Requested;
            }
            return Ok(());
        }
        if self.messages.is_incomplete() {
            return Err(RecordError::InterleavedHandshake);
        }
        if content == Content::Alert {
            match Alert::decode(bytes)? {
                Alert::CLOSE_NOTIFY => self.received_close = true,
                Alert::USER_CANCELED => {}
                other => return Err(RecordError::PeerAlert(other)),
            }
        }
        Ok(())
    }

    /// Copies the bytes that were [held](Self::hold) to the front of a read buffer, and returns how
    /// many. What does not fit stays held. The buffer should have more than
    /// [`MAX_RECORD`](crate::MAX_RECORD) bytes, or a record may never be complete.
    pub fn restore(&mut self, buffer: &mut [u8]) -> usize {
        let length = self.held.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.held[..length]);
        self.held.drain(..length);
        if self.held.is_empty() {
            self.held = Vec::new(); // an idle connection keeps no memory
        }
        length
    }

    /// Keeps the input that [`receive`](Self::receive) has not consumed.
    pub fn hold(&mut self, rest: &[u8]) {
        if self.held.is_empty() {
            self.held.extend_from_slice(rest);
        } else {
            self.held.splice(..0, rest.iter().copied());
        }
    }

    /// The byte stream has ended.
    ///
    /// # Errors
    /// Returns [`RecordError::Truncated`] unless the peer sent `close_notify` before, or the error
    /// that had ended the connection.
    pub fn end_of_input(&self) -> Result<(), RecordError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.received_close => Ok(()),
            None => Err(RecordError::Truncated),
        }
    }

    /// Seals application data into [`outgoing`](Self::outgoing), preceded by a key update if the
    /// peer has requested one, or if the keys have encrypted 2^23 records.
    ///
    /// # Errors
    /// Returns [`SealError::Closed`] after [`close`](Self::close) and after an error.
    pub fn seal(&mut self, data: &[u8]) -> Result<(), SealError> {
        self.seal_gathered(&[data])
    }

    /// Seals application data that lies in several parts as [`seal`](Self::seal) does, in as few
    /// records as if it were in one. Parts that share a record are copied, others are not.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub fn seal_gathered(&mut self, parts: &[&[u8]]) -> Result<(), SealError> {
        self.check_open()?;
        if parts.iter().all(|part| part.is_empty()) {
            return Ok(());
        }
        if mem::take(&mut self.owes_key_update) {
            self.sealer
                .update(KeyUpdate::NotRequested, &mut self.outgoing)?;
        }
        self.sealer.data(parts, &mut self.outgoing)
    }

    /// Changes the keys for sending, and requests that the peer does the same for its own.
    ///
    /// # Errors
    /// Returns [`SealError::Closed`] after [`close`](Self::close) and after an error.
    pub fn refresh_traffic_keys(&mut self) -> Result<(), SealError> {
        self.check_open()?;
        self.sealer.update(KeyUpdate::Requested, &mut self.outgoing)
    }

    /// Announces that nothing more will be sent. Receiving is still possible.
    ///
    /// # Errors
    /// Returns [`SealError::Closed`] if it was called before, or after an error.
    pub fn close(&mut self) -> Result<(), SealError> {
        self.check_open()?;
        self.sent_close = true;
        self.sealer.alert(Alert::CLOSE_NOTIFY, &mut self.outgoing)
    }

    /// Ends the connection with a fatal alert, such as [`Alert::INTERNAL_ERROR`].
    ///
    /// # Errors
    /// Returns [`SealError::Closed`] after [`close`](Self::close) and after an error.
    pub fn abort(&mut self, alert: Alert) -> Result<(), SealError> {
        self.check_open()?;
        self.sent_close = true;
        self.sealer.alert(alert, &mut self.outgoing)
    }

    fn check_open(&self) -> Result<(), SealError> {
        if self.sent_close || self.failed.is_some() {
            Err(SealError::Closed)
        } else {
            Ok(())
        }
    }

    /// Sealed bytes that are to be sent.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// Ends this record layer, and returns its state for [`RecordState::thaw`]. Bytes that are
    /// sealed but unsent, or received but not opened, are part of it as they are: nothing is sealed
    /// a second time.
    pub fn freeze(self) -> RecordState {
        RecordState {
            suite: self.suite,
            role: self.role,
            tx: self.sealer.into_direction(),
            rx: self.opener.into_direction(),
            messages: self.messages,
            without_data: self.without_data,
            owes_key_update: self.owes_key_update,
            sent_close: self.sent_close,
            received_close: self.received_close,
            failed: self.failed,
            unread: self.held,
            unsent: self.outgoing.into_unsent(),
        }
    }

    pub(crate) fn thaw(state: RecordState) -> Result<Self, InvalidState> {
        let suite = state.suite;
        if !(state.tx.secret.has_length_for(suite) && state.rx.secret.has_length_for(suite)) {
            return Err(InvalidState::SecretLength);
        }
        if state.tx.sequence > MAX_RECORDS {
            return Err(InvalidState::KeysExhausted(state.tx.sequence));
        }
        if let Some(length) = state.messages.excess() {
            return Err(InvalidState::PartialMessage(length));
        }
        Ok(Self {
            suite,
            role: state.role,
            sealer: Sealer::new(suite, state.tx),
            opener: Opener::new(suite, state.rx),
            messages: state.messages,
            outgoing: state.unsent.into(),
            held: state.unread,
            without_data: state.without_data.min(MAX_WITHOUT_DATA),
            owes_key_update: state.owes_key_update,
            sent_close: state.sent_close,
            received_close: state.received_close,
            failed: state.failed,
        })
    }
}
