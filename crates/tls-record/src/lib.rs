//! TLS 1.3 records after a finished rustls handshake, without I/O.
//!
//! It is the record layer of the second tunnel engine, the crate `tunnel`.
//!
//! [`HandshakeSecrets`] takes a connection over from rustls. From then on a [`RecordLayer`] seals
//! what is to be sent, opens received records where they are, and handles key updates, tickets and
//! alerts. Its whole state can be frozen into a [`RecordState`], which another process thaws.
//!
//! Only the AES-GCM suites are supported ([`Suite`]). A connection with another suite, or with TLS
//! 1.2, stays with rustls.

#![forbid(unsafe_code)]

mod alert;
mod deframe;
mod error;
mod from_rustls;
mod keys;
mod open;
mod outgoing;
mod post_handshake;
mod record_layer;
mod seal;
mod secret;
mod state;
mod suite;

pub use alert::Alert;
pub use deframe::MAX_RECORD;
pub use error::{InvalidState, RecordError, SealError};
pub use from_rustls::{HandoverError, HandshakeSecrets};
pub use outgoing::Outgoing;
pub use record_layer::{Event, Received, RecordLayer};
pub use seal::{MAX_FRAGMENT, Sealer};
pub use secret::TrafficSecret;
pub use state::{Direction, RecordState, Role};
pub use suite::Suite;

#[cfg(test)]
mod tests;
