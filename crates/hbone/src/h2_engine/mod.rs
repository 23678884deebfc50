//! Tunnels by h2 over tokio-rustls.

mod client;
mod heard;
mod io;
mod keepalive;
mod server;
mod stream;
mod unsent;

use std::future::Future;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use crate::settings::Http2;

pub(crate) use client::Client;
pub(crate) use server::{IncomingRequest, serve};
pub(crate) use stream::Stream;

/// Deadline for the HTTP/2 handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Maximum number of unsent bytes buffered per stream.
const SEND_BUFFER: usize = 256 * 1024;

/// Applies the settings that both ends of a tunnel share to a builder of h2, whose builders for
/// clients and servers have no common trait.
macro_rules! configure {
    ($builder:expr, $http2:expr, max_headers: $max_headers:expr) => {
        $builder
            .initial_window_size($http2.stream_window)
            .initial_connection_window_size($http2.connection_window)
            .max_frame_size($http2.frame)
            .max_header_list_size($max_headers)
            .max_send_buffer_size($crate::h2_engine::SEND_BUFFER)
            .data_frame_budget($crate::h2_engine::small_frame_budget(&$http2))
    };
}
use configure;

/// The limit on small DATA frames that may wait unread on a connection, in h2's unit. With h2's
/// default, a single stream of one-byte writes could close the whole connection.
fn small_frame_budget(http2: &Http2) -> usize {
    http2.connection_window as usize
}

/// Waits for the handshake of either end, for a limited time.
async fn handshake<C>(
    handshake: impl Future<Output = std::result::Result<C, h2::Error>>,
) -> Result<C> {
    let timed_out = |_| Error::new(ErrorKind::TimedOut, "the HTTP/2 handshake timed out");
    let done = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await;
    done.map_err(timed_out)?.map_err(Error::other)
}
