//! Memory of proxies.

use std::thread::sleep;
use std::time::Duration;

use super::Options;
use super::arena::Contestant;
use super::held::Held;
use super::load::new_connections;
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
pub(super) fn measure(contestant: &mut Contestant, options: &Options) -> Vec<Sample> {
    // One connection for each tunnel.
    contestant.restart(&[("POOL_MAX_STREAMS_PER_CONNECTION", "1")]);
    let tunnel = held(contestant, options, TUNNELS, 1);
    contestant.restart(&[]);
    let pids = contestant.pids();
    let idle = memory(&pids) / pids.len() as f64;
    let connection = held(contestant, options, CONNECTIONS, 32);
    let (client, server) = (&contestant.client, &contestant.server);
    new_connections(client, server, 32, Duration::from_millis(300));
    sleep(options.time() * RELEASE);
    let burst = memory(&pids) / pids.len() as f64;
    vec![
        ("memory.idle", idle),
        ("memory.connection", connection),
        ("memory.tunnel", tunnel),
        ("memory.burst", burst),
    ]
}

/// Memory of both proxies for each of some idle connections, in KiB.
fn held(contestant: &Contestant, options: &Options, connections: usize, at_once: usize) -> f64 {
    let (pids, program) = (contestant.pids(), options.program());
    drop(Held::open(&program, contestant, 1, 1));
    let before = memory(&pids);
    let held = Held::open(&program, contestant, connections, at_once);
    sleep(Duration::from_millis(200));
    let used = memory(&pids) - before;
    drop(held);
    used * 1024.0 / connections as f64
}
