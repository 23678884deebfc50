//! Either end against h2 over rustls as the peer: mutual TLS with certificates as in the mesh, over
//! a transport in memory that passes random pieces, under key updates of both ends.
#![allow(clippy::unwrap_used)]

#[path = "../support/credentials.rs"]
mod credentials;
mod driver;
mod echo;
mod opener;
mod peer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use credentials::credentials;
use driver::Driver;
use echo::Echo;
use identity::Credentials;
use opener::Opener;
use proptest::prelude::*;
use tokio::io::duplex;
use tokio::time::timeout;
use tunnel::{Config, Http2Config};

/// Everything that is chosen at random.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    stream_window: u32,
    peer_window: u32,
    /// Capacity of the transport, in bytes.
    transport: usize,
    /// Lengths of the streams' payloads, in bytes.
    streams: Vec<usize>,
    /// Whether the tunnel is frozen and thawed at random events.
    is_frozen_often: bool,
    /// How many writes of the peer precede each of its key updates.
    peer_key_writes: u32,
}

fn any_plan() -> impl Strategy<Value = Plan> {
    (
        (any::<u64>(), any::<bool>(), 3..50_u32),
        (100..100_000_u32, 1000..100_000_u32),
        20..40_000_usize,
        prop::collection::vec(0..100_000_usize, 1..8),
    )
        .prop_map(
            |((seed, frozen, writes), (own, peer), transport, streams)| Plan {
                seed,
                stream_window: own,
                peer_window: peer,
                transport,
                streams,
                is_frozen_often: frozen,
                peer_key_writes: writes,
            },
        )
}

impl Plan {
    fn config(&self) -> Config {
        Config {
            http2: Http2Config {
                stream_window: self.stream_window,
                connection_window: self.stream_window * 20,
                ..Http2Config::default()
            },
            ..Config::default()
        }
    }

    fn payload(&self, stream: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ stream as u64);
        let length = self.streams[stream];
        std::iter::repeat_with(|| random.u8(..))
            .take(length)
            .collect()
    }

    /// Runs to the end; the deadline detects a hang.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce(Arc<Credentials>) -> F) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        let test = async {
            let credentials = credentials().await;
            timeout(Duration::from_secs(60), test(credentials)).await
        };
        let done = runtime.block_on(tokio::task::LocalSet::new().run_until(test));
        done.expect("it does not hang");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, max_shrink_iters: 4, ..Default::default() })]

    #[test]
    fn a_client_of_h2_over_rustls_gets_its_bytes_back(plan in any_plan()) {
        plan.run(async |credentials| {
            let (here, there) = duplex(plan.transport);
            let peer = peer::run_client(there, credentials.clone(), plan.clone());
            let peer = tokio::task::spawn_local(peer);
            let driver = Driver::accept(here, &credentials, &plan).await;
            let echo = driver.run(Echo::default()).await;
            peer.await.unwrap();
            assert_eq!(echo.finished, plan.streams.len());
        });
    }

    #[test]
    fn a_server_of_h2_over_rustls_returns_our_bytes(plan in any_plan()) {
        plan.run(async |credentials| {
            let (here, there) = duplex(plan.transport);
            let peer = peer::run_server(there, credentials.clone(), plan.clone());
            let peer = tokio::task::spawn_local(peer);
            let driver = Driver::connect(here, &credentials, &plan).await;
            let opener = driver.run(Opener::new(&plan)).await;
            assert_eq!(opener.finished, plan.streams.len());
            peer.await.unwrap();
        });
    }
}
