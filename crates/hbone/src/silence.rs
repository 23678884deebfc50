//! Peers that send nothing at all.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::sleep;

/// How long a peer that should answer a request may send nothing before it is pinged.
const DOUBTFUL: Duration = Duration::from_millis(500);
/// How long that peer may then send nothing before the tunnel counts as silent.
const SILENT: Duration = Duration::from_millis(1000);

/// Completes when the peer does not even answer a ping, which takes about a second and a half. For
/// the time in which something waits for the peer. `heard` is a number that changes with whatever
/// the peer sends.
pub(crate) async fn until_silent(heard: impl Fn() -> u64, ping: impl Fn()) {
    loop {
        let before = heard();
        sleep(DOUBTFUL).await;
        if heard() != before {
            continue;
        }
        ping();
        sleep(SILENT).await;
        if heard() == before {
            return;
        }
    }
}

/// Logs that a tunnel is closed because its peer does not answer a ping.
pub(crate) fn log_unresponsive(peer: impl Display) {
    tracing::warn!(
        event = "hbone_ping_timeout",
        %peer,
        "HBONE ping timeout: the peer is unresponsive"
    );
}
