//! The state of a connection, all of which can be serialised.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

use serde::{Deserialize, Serialize};

use super::drain::Drain;
use super::headers::Block;
use super::incoming_data::DataFrame;
use super::liveness::Liveness;
use crate::config::{Config, Role};
use crate::error::{ErrorCode, ProtocolError, StreamId, Violation};
use crate::event::Change;
use crate::frame::{FrameReader, PREFACE, write};
use crate::hpack::{Decoder, Encoder};
use crate::limits::Patience;
use crate::settings::{DEFAULT_WINDOW, Settings};
use crate::stream::{Phase, Stream};
use crate::window::{ReceiveWindow, SendWindow};

/// The state of a connection. Times are milliseconds of any clock that does not go back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Core {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) reader: FrameReader,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    /// A header block that is not complete.
    pub(super) block: Option<Block>,
    /// The DATA frame that is being received.
    pub(super) frame: Option<DataFrame>,
    /// The settings of the peer, once it has sent any.
    pub(super) peer: Settings,
    pub(super) has_peer_settings: bool,
    /// Whether the peer has acknowledged ours.
    pub(super) is_acknowledged: bool,
    pub(super) send_window: SendWindow,
    pub(super) receive_window: ReceiveWindow,
    /// The streams that the caller has not released.
    pub(super) streams: BTreeMap<StreamId, Stream>,
    /// The next stream that a client opens.
    pub(super) next_id: u32,
    /// The last stream that the peer of a server has opened.
    pub(super) last_of_peer: StreamId,
    /// The stream that has sent the last data.
    pub(super) last_sender: StreamId,
    pub(super) drain: Drain,
    /// The last stream that the peer processes, after its GOAWAY.
    pub(super) peer_last: Option<StreamId>,
    pub(super) patience: Patience,
    pub(super) liveness: Liveness,
    /// By how many bytes receive windows may be enlarged and are enlarged, in sum.
    pub(super) growth_budget: u64,
    pub(super) growth: u64,
    /// Events to report.
    pub(super) changes: VecDeque<(StreamId, Change)>,
    /// Why the connection has failed.
    pub(super) failure: Option<Violation>,
    /// Frames to send, except DATA.
    pub(super) out: Vec<u8>,
}

impl Core {
    pub(super) fn new(role: Role, config: Config, now_ms: u64) -> Self {
        let is_client = role == Role::Client;
        let mut out = Vec::new();
        if is_client {
            out.extend_from_slice(PREFACE);
        }
        let settings = config.settings(role);
        write::settings(&mut out, &settings.encode(is_client));
        let mut receive_window = ReceiveWindow::new(config.connection_window, DEFAULT_WINDOW);
        if config.connection_window > DEFAULT_WINDOW {
            write::window_update(&mut out, StreamId::CONNECTION, receive_window.grant());
        }
        let max_block = config.max_header_block();
        let defaults = Settings::default();
        Self {
            role,
            reader: FrameReader::new(!is_client, config.max_frame, max_block),
            // The default, until the peer has acknowledged ours.
            decoder: Decoder::new(defaults.header_table.max(config.header_table)),
            encoder: Encoder::default(),
            block: None,
            frame: None,
            peer: Settings {
                enable_push: false,
                ..defaults
            },
            has_peer_settings: false,
            is_acknowledged: false,
            send_window: SendWindow::new(DEFAULT_WINDOW),
            receive_window,
            streams: BTreeMap::new(),
            next_id: 1,
            last_of_peer: StreamId::CONNECTION,
            last_sender: StreamId::CONNECTION,
            drain: Drain::Serving,
            peer_last: None,
            patience: Patience::new(now_ms),
            liveness: Liveness::new(now_ms),
            growth_budget: 0,
            growth: 0,
            changes: VecDeque::new(),
            failure: None,
            config,
            out,
        }
    }

    /// Whether a stream was never opened. Frames on it violate the protocol, while those on a
    /// stream that was released are ignored.
    pub(super) fn is_idle(&self, id: StreamId) -> bool {
        match self.role {
            Role::Client => id.0.is_multiple_of(2) || id.0 >= self.next_id,
            Role::Server => id.0.is_multiple_of(2) || id > self.last_of_peer,
        }
    }

    /// The number of streams that are not closed.
    pub(super) fn open_streams(&self) -> usize {
        let streams = self.streams.values();
        streams.filter(|stream| !stream.is_closed()).count()
    }

    /// Creates the state of a stream.
    pub(super) fn insert_stream(&mut self, id: StreamId) {
        let window = self.config.stream_window;
        // Until the peer applies our settings, it may send what the default allows.
        let available = if self.is_acknowledged {
            window
        } else {
            window.max(DEFAULT_WINDOW)
        };
        let send = SendWindow::new(self.peer.initial_window);
        let receive = ReceiveWindow::new(window, available);
        self.streams.insert(id, Stream::new(send, receive));
    }

    /// Reports a change of a stream.
    pub(super) fn report(&mut self, id: StreamId, change: Change) {
        self.changes.push_back((id, change));
    }

    /// Resets an open stream.
    pub(super) fn reset_stream(&mut self, id: StreamId, code: ErrorCode) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.is_closed()
        {
            stream.phase = Phase::Reset;
            write::reset(&mut self.out, id, code);
        }
    }

    /// Ends what an error concerns.
    pub(super) fn handle_error(&mut self, error: ProtocolError, now_ms: u64) {
        let (id, violation) = match error {
            ProtocolError::Connection(violation) => return self.fail(violation),
            ProtocolError::Stream(id, violation) => (id, violation),
        };
        let code = violation.code();
        match self.streams.get(&id) {
            Some(stream) if stream.phase == Phase::Reset => {}
            Some(stream) => {
                if !stream.is_closed() {
                    self.report(id, Change::Failed(violation));
                }
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.phase = Phase::Reset;
                }
                write::reset(&mut self.out, id, code);
            }
            None => write::reset(&mut self.out, id, code),
        }
        if let Err(flood) = self.patience.spend(now_ms) {
            self.fail(flood);
        }
    }

    /// Closes the connection because of an error.
    pub(super) fn fail(&mut self, violation: Violation) {
        if self.failure.is_none() {
            self.failure = Some(violation);
            let last = match self.drain {
                Drain::Final(last) => last,
                Drain::Serving | Drain::Announced => self.last_of_peer,
            };
            let text = violation.to_string();
            write::go_away(&mut self.out, last, violation.code(), &text);
        }
    }

    /// Reports credit to all streams that wait for it and can now send.
    pub(super) fn report_credit(&mut self) {
        // A small window may not suffice for all: those after the last sender are first.
        self.report_credit_of(StreamId(self.last_sender.0 + 1)..);
        self.report_credit_of(..=self.last_sender);
    }

    /// Reports credit to the streams of a range that wait for it and can now send.
    pub(super) fn report_credit_of(&mut self, range: impl RangeBounds<StreamId>) {
        if self.send_window.available() == 0 {
            return;
        }
        for (id, stream) in self.streams.range_mut(range) {
            if stream.wants_credit && stream.can_send() && stream.send.available() > 0 {
                stream.wants_credit = false;
                self.changes.push_back((*id, Change::Credit));
            }
        }
    }
}
