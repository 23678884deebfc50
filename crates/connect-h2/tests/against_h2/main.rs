//! Either end against h2 as the peer, over a transport in memory that passes random pieces.
#![allow(clippy::unwrap_used)]

mod driver;
mod echo;
mod endings;
mod opener;
mod peer;

use std::time::Duration;

use connect_h2::{Config, Connection, Role};
use driver::Driver;
use echo::Echo;
use opener::Opener;
use proptest::prelude::*;
use tokio::io::duplex;
use tokio::time::timeout;

/// Everything that is chosen at random.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    stream_window: u32,
    peer_window: u32,
    /// Capacity of the transport, in bytes.
    transport: usize,
    /// Payloads of the streams: their lengths, and whether the client resets the stream.
    streams: Vec<(usize, bool)>,
    header_table: u32,
    is_frozen_often: bool,
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let stream = (0..60_000_usize, prop::bool::weighted(0.2));
    let windows = (100..100_000_u32, 1000..100_000_u32);
    let rest = (
        any::<u64>(),
        20..20_000_usize,
        prop_oneof![Just(0), Just(4096_u32)],
    );
    (
        windows,
        prop::collection::vec(stream, 1..8),
        rest,
        any::<bool>(),
    )
        .prop_map(
            |((stream_window, peer_window), streams, (seed, transport, header_table), frozen)| {
                Plan {
                    seed,
                    stream_window,
                    peer_window,
                    transport,
                    streams,
                    header_table,
                    is_frozen_often: frozen,
                }
            },
        )
}

impl Plan {
    fn config(&self) -> Config {
        Config {
            stream_window: self.stream_window,
            connection_window: self.stream_window * 20,
            header_table: self.header_table,
            ..Config::default()
        }
    }

    fn payload(&self, stream: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ stream as u64);
        let length = self.streams[stream].0;
        std::iter::repeat_with(|| random.u8(..))
            .take(length)
            .collect()
    }

    /// Runs to the end; the deadline detects a hang.
    fn run(&self, test: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        let test = async { timeout(Duration::from_secs(60), test).await };
        let done = runtime.block_on(tokio::task::LocalSet::new().run_until(test));
        done.expect("it does not hang");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 4, ..Default::default() })]

    #[test]
    fn a_client_of_h2_gets_its_bytes_back(plan in any_plan()) {
        plan.run(async {
            let (here, there) = duplex(plan.transport);
            let server = Connection::new(Role::Server, plan.config(), 0);
            let driver = Driver::new(server, Echo::default(), here, &plan);
            let peer = tokio::task::spawn_local(peer::run_client(there, plan.clone()));
            let echo = driver.run().await;
            peer.await.unwrap();
            assert_eq!(echo.requests, plan.streams.len());
            assert_eq!(echo.open(), 0);
        });
    }

    #[test]
    fn a_server_of_h2_returns_our_bytes(plan in any_plan()) {
        plan.run(async {
            let (here, there) = duplex(plan.transport);
            let client = Connection::new(Role::Client, plan.config(), 0);
            let driver = Driver::new(client, Opener::new(&plan), here, &plan);
            let peer = tokio::task::spawn_local(peer::run_server(there, plan.clone()));
            let opener = driver.run().await;
            assert_eq!(opener.finished, plan.streams.len());
            peer.await.unwrap();
        });
    }
}
