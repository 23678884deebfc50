//! HBONE tunnels: HTTP/2 CONNECT over mutual TLS. Both ends are here, the pool of outgoing tunnels,
//! and the detection of unresponsive peers. The crate exposes streams of bytes with half-close,
//! reset and flow control, and relays them; it hides the engine that speaks TLS and HTTP/2, of
//! which there are two ([`TunnelEngine`]). It knows neither certificates nor routes: the caller
//! passes the connection, the TLS configuration and the destination.

#![forbid(unsafe_code)]

mod byte_queue;
mod engine;
mod forwarded;
mod h2_engine;
mod handshake;
mod held;
mod own_engine;
mod packet;
mod peer_alert;
mod pool;
mod request;
mod settings;
mod silence;
mod stream;
mod stream_end;
mod tunnel;

pub use h2::Reason;

pub use crate::tunnel::{EstablishedStream, OpenError, Tunnel};
pub use engine::TunnelEngine;
pub use forwarded::{forwarded, forwarded_host};
pub use handshake::{Accepted, Connected, HandshakeError, Transport, TunnelTask, accept, connect};
pub use held::HeldBytes;
pub use pool::{InnerKey, Pool, TunnelKey};
pub use request::{ConnectRequest, FORWARDED_NETWORK, IncomingRequest, JOIN, JoinToken};
pub use settings::Http2;
pub use stream::{ByteStream, HboneStream};
