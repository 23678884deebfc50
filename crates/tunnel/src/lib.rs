//! A tunnel of CONNECT streams: TLS 1.3 and HTTP/2 as one state machine, without I/O and clocks.
//!
//! 1. A [`Handshake`] by rustls turns into a [`Tunnel`].
//! 2. Received bytes become events, and what applications send becomes bytes to send, in as few TLS
//!    records as possible.
//! 3. A tunnel can be frozen at any time into a [`TunnelState`], a plain value that another process
//!    thaws.
//!
//! ```
//! # fn socket_read(_: &mut [u8]) -> usize { 0 }
//! # fn socket_write(_: &[u8]) -> usize { 0 }
//! # fn turn(tunnel: &mut tunnel::Tunnel, now_ms: u64) -> Result<(), tunnel::TunnelError> {
//! use tunnel::{Event, MIN_BUFFER, Received};
//!
//! let mut buffer = vec![0; MIN_BUFFER]; // of the thread: a tunnel holds none
//! let mut input = tunnel.input(&mut buffer);
//! let length = socket_read(input.space());
//! input.fill(length);
//! while let Received::Event(event) = tunnel.receive(&mut input, now_ms)? {
//!     if let Event::Data { id, range } = event {
//!         let data = input.data(range); // the application takes it
//!         let length = data.len();
//!         tunnel.taken(id, length, now_ms);
//!     }
//! }
//! tunnel.hold(input);
//!
//! let length = socket_write(tunnel.output());
//! tunnel.sent(length);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod error;
mod handshake;
mod input;
mod state;
mod streams;
mod tunnel;

pub use connect_h2::{
    Change, Config as Http2Config, ErrorCode, Event, OpenError, RequestHead, ResponseHead, Role,
    SendError, StreamId, Violation,
};
pub use error::{ThawError, TunnelError};
pub use handshake::{Handshake, HandshakeError};
pub use input::{Input, MIN_BUFFER};
pub use state::TunnelState;
pub use tls_record::{HandoverError, RecordError, SealError, Suite};
pub use tunnel::{Config, Received, Tunnel};
