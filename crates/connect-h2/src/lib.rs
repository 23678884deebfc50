//! HTTP/2 (RFC 9113) reduced to what HBONE needs: streams opened by CONNECT. A state machine
//! without I/O and without clocks: the caller passes received bytes and the time, and takes the
//! bytes to send. It is the HTTP/2 layer of the second tunnel engine, the crate `tunnel`.

#![forbid(unsafe_code)]

mod config;
mod connection;
mod error;
mod event;
pub mod frame;
mod head;
pub mod hpack;
mod limits;
pub mod settings;
mod stream;
mod window;

pub use config::{Config, Role};
pub use connection::{Connection, H2State, OpenError, SendError, UnknownVersion};
pub use error::{ErrorCode, ProtocolError, StreamId, Violation};
pub use event::{Change, Event};
pub use head::{RequestHead, ResponseHead};
