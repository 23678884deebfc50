//! Tunnels by the crate `tunnel`: TLS 1.3 records and HTTP/2 of our own, behind a handshake by
//! rustls. All streams of a tunnel share it with one driver, which sends once per turn what all of
//! them have sent.

mod blocks;
mod client;
mod connection;
mod driver;
mod handshake;
mod io;
mod server;
mod stream;
mod wakers;

use std::fmt;
use std::io::{Error, ErrorKind};
use std::rc::Rc;

use rustls::crypto::CryptoProvider;
use tunnel::{Config, Http2Config, Suite};

use crate::settings::Http2;

pub(crate) use client::Client;
pub(crate) use handshake::Established;
pub(crate) use server::{IncomingRequest, serve};
pub(crate) use stream::Stream;

/// Whether the engine supports everything that a TLS configuration may negotiate.
pub(crate) fn supports(provider: &CryptoProvider) -> bool {
    let mut suites = provider.cipher_suites.iter();
    suites.all(|suite| Suite::of(*suite).is_some())
}

/// The configuration of a tunnel with at most `streams` streams.
fn config(http2: &Http2, streams: u32, max_headers: u32) -> Config {
    Config {
        http2: Http2Config {
            max_streams: streams,
            stream_window: http2.stream_window,
            connection_window: http2.connection_window,
            max_frame: http2.frame,
            max_header_list: max_headers,
            ..Http2Config::default()
        },
        ..Config::default()
    }
}

#[cfg(test)]
mod tests;

/// How a tunnel has ended, for each of its streams.
#[derive(Debug, Clone)]
struct Ended {
    kind: ErrorKind,
    text: Rc<str>,
}

impl Ended {
    fn new(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            text: error.to_string().into(),
        }
    }

    fn error(&self) -> Error {
        Error::new(self.kind, self.to_string())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
