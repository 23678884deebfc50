//! The tunnel: HTTP/2 CONNECT over mutual TLS. What is above sees streams of bytes and never the engine below.

mod client;
mod io;
mod keepalive;
mod pool;
mod server;
mod settings;
mod stream;

pub(crate) use client::{FORWARDED_NETWORK, OpenError, Opened, Opening, StreamCount, Tunnel};
pub(crate) use io::HboneIo;
pub(crate) use pool::{InnerKey, Pool, TunnelKey};
pub(crate) use server::{Incoming, serve};
pub(crate) use settings::Http2;
pub(crate) use stream::{HboneSink, HboneSource, HboneStream};
