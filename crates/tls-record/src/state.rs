//! The state of a connection as a value.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{InvalidState, RecordError};
use crate::post_handshake::PostHandshake;
use crate::record_layer::RecordLayer;
use crate::secret::TrafficSecret;
use crate::suite::Suite;

/// Which end of the connection this is. Only a server sends session tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The end that began the handshake.
    Client,
    /// The end that answered.
    Server,
}

/// One direction of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Direction {
    pub(crate) secret: TrafficSecret,
    pub(crate) sequence: u64,
}

impl Direction {
    /// `sequence` is the number of records that were encrypted with the keys of this secret.
    pub fn new(secret: TrafficSecret, sequence: u64) -> Self {
        Self { secret, sequence }
    }
}

/// The whole state of a connection: a plain value that can be serialised, to be continued by
/// another process. Its debug output contains neither secrets nor data, and the secrets are
/// erased when it is dropped. Its serialised form contains them.
///
/// A value can be thawed once. Serialised, it must also be thawed at most once: two connections
/// with the same state would use nonces twice, which reveals their data.
///
/// ```compile_fail,E0382
/// fn twice(state: tls_record::RecordState) {
///     let first = state.thaw();
///     let second = state.thaw();
/// }
/// ```
#[derive(Serialize, Deserialize)]
pub struct RecordState {
    pub(crate) suite: Suite,
    pub(crate) role: Role,
    pub(crate) tx: Direction,
    pub(crate) rx: Direction,
    pub(crate) messages: PostHandshake,
    pub(crate) without_data: u8,
    pub(crate) owes_key_update: bool,
    pub(crate) sent_close: bool,
    pub(crate) received_close: bool,
    pub(crate) failed: Option<RecordError>,
    pub(crate) unread: Vec<u8>,
    pub(crate) unsent: Vec<u8>,
}

impl RecordState {
    /// The state of a connection right after its handshake. Both secrets must have the suite's
    /// length ([`Suite::secret_len`]).
    pub fn new(suite: Suite, role: Role, tx: Direction, rx: Direction) -> Self {
        Self {
            suite,
            role,
            tx,
            rx,
            messages: PostHandshake::default(),
            without_data: 0,
            owes_key_update: false,
            sent_close: false,
            received_close: false,
            failed: None,
            unread: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// Continues the connection.
    ///
    /// # Errors
    /// Returns [`InvalidState`] if no connection can be in this state.
    pub fn thaw(self) -> Result<RecordLayer, InvalidState> {
        RecordLayer::thaw(self)
    }
}

impl fmt::Debug for RecordState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordState")
            .field("suite", &self.suite)
            .field("role", &self.role)
            .field("tx", &self.tx)
            .field("rx", &self.rx)
            .field("sent_close", &self.sent_close)
            .field("received_close", &self.received_close)
            .field("failed", &self.failed)
            .field("unread", &self.unread.len())
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}
