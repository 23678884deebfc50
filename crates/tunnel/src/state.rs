//! A tunnel as a value.

use std::fmt;

use connect_h2::{Connection, H2State};
use serde::{Deserialize, Serialize};
use tls_record::{MAX_FRAGMENT, RecordState};

use crate::error::{ThawError, TunnelError};
use crate::tunnel::{End, Tunnel};

/// The version of the format. It changes with every field.
pub(crate) const VERSION: u16 = 2;

/// The whole state of a tunnel: a plain value that can be serialised, to be continued by another
/// process. Its debug output contains neither secrets nor data, and the secrets are erased when it
/// is dropped. Its serialised form contains them.
///
/// A value can be thawed once. Serialised, it must also be thawed at most once: two tunnels with
/// the same state would use nonces twice, which reveals their data.
///
/// ```compile_fail,E0382
/// fn twice(state: tunnel::TunnelState) {
///     let first = state.thaw();
///     let second = state.thaw();
/// }
/// ```
#[derive(Serialize, Deserialize)]
pub struct TunnelState {
    version: u16,
    records: RecordState,
    http2: H2State,
    max_unsent: usize,
    beyond: usize,
    opened: Vec<u8>,
    gathered: Vec<u8>,
    end: End,
    failure: Option<TunnelError>,
}

impl Tunnel {
    /// Ends this tunnel, and returns its state for [`TunnelState::thaw`]. An input must be
    /// [held](Self::hold) before. Bytes that are sealed but unsent, or received but not opened, are
    /// part of it as they are: nothing is sealed a second time. Data of earlier events is the
    /// caller's to keep.
    pub fn freeze(self) -> TunnelState {
        TunnelState {
            version: VERSION,
            records: self.records.freeze(),
            http2: self.http2.freeze(),
            max_unsent: self.max_unsent,
            beyond: self.beyond,
            opened: self.opened,
            gathered: self.gathered,
            end: self.end,
            failure: self.failure,
        }
    }
}

impl TunnelState {
    /// Continues the tunnel.
    ///
    /// # Errors
    /// If no tunnel can be in this state, or another version of the software has written it.
    pub fn thaw(self) -> Result<Tunnel, ThawError> {
        if self.version != VERSION {
            return Err(ThawError::Version(self.version));
        }
        for plain in [&self.opened, &self.gathered] {
            if plain.len() > MAX_FRAGMENT {
                return Err(ThawError::PlainText(plain.len()));
            }
        }
        Ok(Tunnel {
            records: self.records.thaw()?,
            http2: Connection::thaw(self.http2)?,
            max_unsent: self.max_unsent,
            beyond: self.beyond,
            opened: self.opened,
            gathered: self.gathered,
            end: self.end,
            failure: self.failure,
        })
    }
}

impl fmt::Debug for TunnelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelState")
            .field("version", &self.version)
            .field("records", &self.records)
            .field("opened", &self.opened.len())
            .field("gathered", &self.gathered.len())
            .field("end", &self.end)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
