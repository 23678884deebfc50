//! The tunnel: HTTP/2 CONNECT over mutual TLS. What is above sees streams of bytes and never the engine below.

mod client;
mod keepalive;
mod pool;
mod server;
mod settings;
mod stream;

pub(crate) use client::{OpenError, Opening, StreamCount, Tunnel};
pub(crate) use pool::{Pool, TunnelKey};
pub(crate) use server::{Incoming, serve};
pub(crate) use stream::{HboneSink, HboneSource, HboneStream};
