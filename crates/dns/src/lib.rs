//! DNS for pods: names in the mesh are answered from it, all others by the name server that the
//! application queried.
//!
//! Redirection captures DNS on port 15053. Under tproxy, a query keeps the address of the name
//! server, and the answer is sent from that address. Under NAT, it arrives at a loopback address,
//! and the kernel translates the answer. The destination distinguishes the two cases.

#![forbid(unsafe_code)]

mod answer;
mod answer_cache;
mod bounded_map;
mod client;
mod exchange;
mod forward;
mod framing;
mod known_answer;
mod known_name;
mod lookup_cache;
mod message;
mod query;
mod query_event;
mod resolve;
mod settings;
mod tcp;
mod udp;
mod upstream;
mod validity;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use answer_cache::AnswerCache;
pub use bounded_map::CacheBudget;
pub use client::Client;
pub use resolve::Resolver;
pub use settings::{Settings, parse_name_server};
pub use tcp::serve as serve_tcp;
pub use udp::{UdpListener, listen, serve as serve_udp};

/// Deadline for an answer of a name server.
const DEADLINE: Duration = Duration::from_secs(5);
/// Maximum number of queries of one pod that wait for a name server; more fail at once.
const MAX_FORWARDED: usize = 1000;
/// Maximum number of DNS connections of one pod over TCP; more are reset.
const MAX_CONNECTIONS: usize = 100;

/// Runs all parsers of untrusted bytes, for the fuzz target: on a pod's query, and on a name
/// server's answer to it.
#[doc(hidden)]
pub fn exercise_parsers(query: &[u8], answer: &[u8]) {
    let Ok(query) = query::Query::parse(query) else {
        return;
    };
    assert!(query.failure().len() >= 12);
    assert!((512..=4096).contains(&query.udp_size()));
    query.is_answered_by(answer, query.id());
    message::is_complete(answer);
    let from = std::net::SocketAddr::from(([127, 0, 0, 1], 53));
    let upstream = known_answer::UpstreamAnswer::new(&query, answer.to_vec(), from, DEADLINE);
    if answer.len() >= message::HEADER {
        let reply = known_answer::Reply::new(std::sync::Arc::new(upstream));
        assert_eq!(reply.rotated(&query, 7).len(), answer.len());
    }
    if let Some(question) = &query.question {
        // Invalid answers are expected.
        let _ = resolve::addresses_in(answer, question);
        let many = vec![std::net::IpAddr::from([10, 0, 0, 1]); 1000];
        let message = answer::message(&query, many, 7);
        assert!(query::encode(&message, 512).is_some_and(|bytes| bytes.len() <= 512));
    }
}

/// Limits on the concurrent queries of one pod.
pub struct Limits {
    forwarded: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            forwarded: Arc::new(Semaphore::new(MAX_FORWARDED)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }
}
