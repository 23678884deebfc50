//! Bytes of the connection in and out.

use connect_h2::{Connection, Event, Role};
use serde::{Deserialize, Serialize};
use tls_record::{MAX_FRAGMENT, RecordLayer, SealError};

use crate::error::TunnelError;
use crate::input::{Input, MIN_BUFFER};

/// How many bytes of frames that answer the peer may wait beyond [`Config::max_unsent`]: far more
/// than any peer causes that reads.
const MAX_ANSWERS: usize = 4 << 20;

/// The configuration of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The configuration of HTTP/2.
    pub http2: connect_h2::Config,
    /// How many bytes may wait to be sent before no more data is accepted. The data of one
    /// [`Tunnel::send`] may exceed it by a frame.
    pub max_unsent: usize,
}

impl Default for Config {
    /// The values of the proxy for incoming tunnels.
    fn default() -> Self {
        Self {
            http2: connect_h2::Config::default(),
            max_unsent: 256 << 10,
        }
    }
}

/// Progress of [`Tunnel::receive`].
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// Something happened. The range of [`Event::Data`] is for [`Input::data`].
    Event(Event),
    /// The input has nothing more that is complete.
    NeedMore,
    /// The peer has closed the connection in order, and sends nothing more.
    Closed,
}

/// How far this side has ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// Not at all.
    Open,
    /// What was gathered is the last before `close_notify`.
    Closing,
    /// `close_notify` or an alert is sealed, and nothing can follow.
    Closed,
}

/// One end of a tunnel.
///
/// * Receiving: begin an [`input`](Self::input), read into it, call [`receive`](Self::receive)
///   until it needs more, and [`hold`](Self::hold) the rest. When the stream of bytes ends, call
///   [`end_of_input`](Self::end_of_input).
/// * Sending: call [`send`](Self::send) and other methods for any number of streams, then send what
///   [`output`](Self::output) returns. What is gathered until then shares records. Receiving and
///   [`tick`](Self::tick) cause output as well, which waits for no window: a caller that always
///   sends the output and never stops receiving cannot be part of a deadlock.
/// * A stream begins with [`open`](Self::open) or [`Event::Request`] and exists until
///   [`release`](Self::release), however it ends.
/// * Times are milliseconds of any clock that does not go back, the same one for the whole life of
///   the tunnel, also in another process.
pub struct Tunnel {
    pub(crate) records: RecordLayer,
    pub(crate) http2: Connection,
    pub(crate) max_unsent: usize,
    /// How many bytes of data were accepted beyond that, and may not be sent yet.
    pub(crate) beyond: usize,
    /// Plain text that was received and not handled when the input was held.
    pub(crate) opened: Vec<u8>,
    /// Frames that are not sealed yet, less than fill a record.
    pub(crate) gathered: Vec<u8>,
    pub(crate) end: End,
    pub(crate) failure: Option<TunnelError>,
}

impl Tunnel {
    /// Begins HTTP/2 on a connection whose handshake is complete.
    pub fn new(records: RecordLayer, role: Role, config: Config, now_ms: u64) -> Self {
        Self {
            records,
            http2: Connection::new(role, config.http2, now_ms),
            max_unsent: config.max_unsent,
            beyond: 0,
            opened: Vec::new(),
            gathered: Vec::new(),
            end: End::Open,
            failure: None,
        }
    }

    /// Begins to receive into a buffer of at least [`MIN_BUFFER`] bytes. A larger one takes more
    /// from the connection at once.
    ///
    /// # Panics
    /// Panics if the buffer is smaller.
    pub fn input<'b>(&mut self, buffer: &'b mut [u8]) -> Input<'b> {
        assert!(buffer.len() >= MIN_BUFFER, "the read buffer is too small");
        let opened = 0..self.opened.len();
        buffer[opened.clone()].copy_from_slice(&self.opened);
        self.opened = Vec::new(); // an idle tunnel keeps no memory
        let begin = opened.end;
        let end = begin + self.records.restore(&mut buffer[begin..]);
        Input {
            bytes: buffer,
            opened,
            sealed: begin..end,
        }
    }

    /// Handles the input up to the next event.
    ///
    /// # Errors
    /// After an error every call returns the same one. What the peer should know of it is in the
    /// [`output`](Self::output); then the connection is closed.
    pub fn receive(&mut self, input: &mut Input<'_>, now_ms: u64) -> Result<Received, TunnelError> {
        self.check()?;
        let received = self.advance(input, now_ms);
        received.map_err(|error| self.fail(error))
    }

    fn advance(&mut self, input: &mut Input<'_>, now_ms: u64) -> Result<Received, TunnelError> {
        loop {
            let (plain, at) = (&input.bytes[..input.opened.end], &mut input.opened.start);
            let event = self.http2.receive(plain, at, now_ms)?;
            if self.unsent() > self.max_unsent + self.beyond + MAX_ANSWERS {
                return Err(TunnelError::Unread);
            }
            if let Some(event) = event {
                return Ok(Received::Event(event));
            }
            let begin = input.sealed.start;
            let received = self
                .records
                .receive(&mut input.bytes[input.sealed.clone()])?;
            input.sealed.start += received.consumed;
            match received.event {
                tls_record::Event::Data(range) => {
                    input.opened = begin + range.start..begin + range.end;
                }
                tls_record::Event::NeedMore => return Ok(Received::NeedMore),
                tls_record::Event::Closed => return Ok(Received::Closed),
            }
        }
    }

    /// Keeps what is left of an input.
    pub fn hold(&mut self, input: Input<'_>) {
        let Input {
            bytes,
            opened,
            sealed,
        } = input;
        self.opened.extend_from_slice(&bytes[opened]);
        self.records.hold(&bytes[sealed]);
    }

    /// The stream of bytes has ended.
    ///
    /// # Errors
    /// If the peer has not [closed](Received::Closed) the connection before, or why the tunnel had
    /// failed.
    pub fn end_of_input(&mut self) -> Result<(), TunnelError> {
        self.check()?;
        let ended = self.records.end_of_input();
        ended.map_err(|error| self.fail(error.into()))
    }

    /// Seals what was gathered, and returns the bytes to send.
    pub fn output(&mut self) -> &[u8] {
        if let Err(error) = self.seal() {
            self.fail(error.into());
        }
        self.records.outgoing().unsent()
    }

    fn seal(&mut self) -> Result<(), SealError> {
        if self.end == End::Closed {
            self.gathered.clear();
            self.http2.take_output();
            return Ok(());
        }
        self.gather_control()?;
        self.records.seal(&self.gathered)?;
        self.gathered.clear();
        if self.end == End::Closing {
            self.end = End::Closed;
            self.records.close()?;
        }
        Ok(())
    }

    /// Notes that the first `length` bytes of the output were sent.
    ///
    /// # Panics
    /// Panics if there are fewer.
    pub fn sent(&mut self, length: usize) {
        self.records.outgoing().sent(length);
        if self.beyond > 0 && !self.is_full() {
            self.beyond = 0;
        }
    }

    /// The number of bytes that wait to be sent. What is not sealed yet counts without the overhead
    /// of TLS.
    pub fn unsent(&mut self) -> usize {
        let sealed = self.records.outgoing().unsent().len();
        sealed + self.gathered.len() + self.http2.output().len()
    }

    /// Whether so many bytes wait to be sent that no more data is accepted.
    pub fn is_full(&mut self) -> bool {
        self.unsent() >= self.max_unsent
    }

    /// Returns memory that is not in use to the allocator. For tunnels that are idle.
    pub fn release_memory(&mut self) {
        self.gathered.shrink_to_fit();
        self.records.outgoing().release();
    }

    /// Gathers the frames that precede any further DATA.
    pub(crate) fn gather_control(&mut self) -> Result<(), SealError> {
        let control = self.http2.take_output();
        self.gather(&control)
    }

    /// Adds bytes to what the next record contains, and seals the records that they fill.
    pub(crate) fn gather(&mut self, bytes: &[u8]) -> Result<(), SealError> {
        let before = self.gathered.len();
        let full = (before + bytes.len()) / MAX_FRAGMENT * MAX_FRAGMENT;
        let (now, later) = bytes.split_at(full.saturating_sub(before));
        if full > 0 {
            self.records.seal_gathered(&[&self.gathered, now])?;
            self.gathered.clear();
        }
        self.gathered.extend_from_slice(later);
        Ok(())
    }

    /// Pings the peer or detects that it is unresponsive, if it is time to.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn tick(&mut self, now_ms: u64) -> Result<(), TunnelError> {
        self.check()?;
        let ticked = self.http2.tick(now_ms);
        ticked.map_err(|violation| self.fail(violation.into()))
    }

    /// When [`tick`](Self::tick) is due; `None` if the tunnel has failed.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.failure {
            Some(_) => None,
            None => self.http2.deadline_ms(),
        }
    }

    /// Changes the keys for sending, and requests that the peer changes its own.
    ///
    /// # Errors
    /// If nothing can be sent any more.
    pub fn refresh_traffic_keys(&mut self) -> Result<(), TunnelError> {
        self.check()?;
        Ok(self.records.refresh_traffic_keys()?)
    }

    /// Ends the output in order, behind what was gathered. Streams that are open end without a
    /// frame of their own; see [`is_finished`](Self::is_finished).
    pub fn close(&mut self) {
        if self.end == End::Open {
            self.end = End::Closing;
        }
    }

    /// Why the tunnel has failed.
    pub fn failure(&self) -> Option<TunnelError> {
        self.failure
    }

    /// The error of an earlier call.
    pub(crate) fn check(&self) -> Result<(), TunnelError> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Ends the tunnel because of an error. The peer learns it by GOAWAY or an alert.
    pub(crate) fn fail(&mut self, error: TunnelError) -> TunnelError {
        self.failure.get_or_insert(error);
        match error {
            TunnelError::Tls(_) | TunnelError::Seal(_) => self.end = End::Closed,
            TunnelError::Http2(_) | TunnelError::Unread => self.close(),
        }
        error
    }
}
