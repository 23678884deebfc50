//! DNS of the pods: names of the mesh are answered from it, everything else by the name server that was asked.
//!
//! Redirection brings DNS to port 15053. Under tproxy a query arrives with the name server that the application asked, and
//! the answer seems to come from there; under NAT rules it arrives at a loopback address, and the kernel translates the
//! answer. Both are served without being told.

mod answer;
mod forward;
mod observe;
mod query;
mod resolve;
mod settings;
mod tcp;
mod udp;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub(crate) use resolve::Resolver;
pub(crate) use settings::{Settings, name_server};
pub(crate) use tcp::serve as serve_tcp;
pub(crate) use udp::{UdpListener, listen, serve as serve_udp};

/// How long a name server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Queries of one pod that wait for a name server at most; more fail at once.
const FORWARDED: usize = 1000;
/// TCP connections of one pod to port 15053 at most; more are reset.
const CONNECTIONS: usize = 100;

/// What one pod may ask at once.
pub(crate) struct Limits {
    forwarded: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { forwarded: Arc::new(Semaphore::new(FORWARDED)), connections: Arc::new(Semaphore::new(CONNECTIONS)) }
    }
}
