//! What the caller chooses for a connection.

use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// The end of a connection that this side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It opens streams.
    Client,
    /// It accepts streams.
    Server,
}

/// The configuration of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Maximum number of open streams. On a client, the peer may set a lower limit.
    pub max_streams: u32,
    /// Receive window of a stream, in bytes, at most 2^31 - 1.
    pub stream_window: u32,
    /// Receive window of the connection, in bytes, at most 2^31 - 1: large enough for all stream
    /// windows together, unless stalled streams may block the others.
    pub connection_window: u32,
    /// Largest frame accepted, in bytes, from 2^14 to 2^24 - 1.
    pub max_frame: u32,
    /// Maximum size of the header list of a request or response, in bytes, as RFC 9113 counts.
    pub max_header_list: u32,
    /// Maximum number of fields in a header list.
    pub max_fields: u32,
    /// Size of the table for the decompression of headers, in bytes.
    pub header_table: u32,
    /// Idle time before a ping, in milliseconds.
    pub keepalive_idle_ms: u64,
    /// How long a pinged peer may send nothing at all, in milliseconds.
    pub keepalive_answer_ms: u64,
    /// How long the peer may take to send and acknowledge settings, in milliseconds.
    pub settings_ms: u64,
}

impl Default for Config {
    /// The values of the proxy for incoming tunnels.
    fn default() -> Self {
        Self {
            max_streams: 1024,
            stream_window: 1 << 20,
            connection_window: 1 << 30,
            max_frame: 64 << 10,
            max_header_list: 64 << 10,
            max_fields: 256,
            header_table: 0,
            keepalive_idle_ms: 10_000,
            keepalive_answer_ms: 20_000,
            settings_ms: 5_000,
        }
    }
}

impl Config {
    /// The settings to send.
    pub(crate) fn settings(&self, role: Role) -> Settings {
        Settings {
            header_table: self.header_table,
            enable_push: false,
            max_streams: (role == Role::Server).then_some(self.max_streams),
            initial_window: self.stream_window,
            max_frame: self.max_frame,
            max_header_list: Some(self.max_header_list),
        }
    }

    /// The largest header block that is decoded, in bytes: larger than the limit of the list, so
    /// that a request above that limit is answered instead of closing the connection.
    pub(crate) fn max_header_block(&self) -> u32 {
        self.max_header_list.saturating_mul(2).max(1024)
    }
}
