//! Memory of proxies.

use std::thread::sleep;
use std::time::Duration;

use super::arena::Contestant;
use super::load::{hold, new_connections};
use super::processes::memory;
use super::rows::Sample;

/// Connections that are open at once.
const CONNECTIONS: usize = 2_000;
/// Tunnels that are open at once.
const TUNNELS: usize = 100;
/// How long memory that is not used any more stays with a process, in units of the time of a
/// round: longer than ten seconds by default.
const RELEASE: u32 = 30;

/// Measures proxies that were just started. They are started again afterwards.
pub(super) fn measure(contestant: &mut Contestant, time: Duration) -> Vec<Sample> {
    // One connection for each tunnel.
    contestant.restart(&[("POOL_MAX_STREAMS_PER_CONNECTION", "1")]);
    let tunnel = held(contestant, TUNNELS, 1);
    contestant.restart(&[]);
    let pids = contestant.pids();
    let idle = memory(&pids) / pids.len() as f64;
    let connection = held(contestant, CONNECTIONS, 32);
    let (client, server) = (&contestant.client, &contestant.server);
    new_connections(client, server, 32, Duration::from_millis(300));
    sleep(time * RELEASE);
    let burst = memory(&pids) / pids.len() as f64;
    vec![
        ("memory.idle", idle),
        ("memory.connection", connection),
        ("memory.tunnel", tunnel),
        ("memory.burst", burst),
    ]
}

/// Memory of both proxies for each of some idle connections, in KiB.
fn held(contestant: &Contestant, connections: usize, at_once: usize) -> f64 {
    let (client, server, pids) = (&contestant.client, &contestant.server, contestant.pids());
    drop(hold(client, server, 1, 1));
    let before = memory(&pids);
    let held = hold(client, server, connections, at_once);
    sleep(Duration::from_millis(200));
    let used = memory(&pids) - before;
    drop(held);
    used * 1024.0 / connections as f64
}
