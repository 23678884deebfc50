//! A peer that is gone is found out by pings.

use std::net::SocketAddr;
use std::time::Duration;

use h2::{Ping, PingPong};

/// As the interface defines it.
const INTERVAL: Duration = Duration::from_secs(10);
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// Pings for as long as the peer answers; returns when it does not, or the connection has ended.
pub(super) async fn until_silent(ping_pong: Option<PingPong>, peer: SocketAddr) {
    let Some(mut ping_pong) = ping_pong else { return std::future::pending().await };
    loop {
        tokio::time::sleep(INTERVAL).await;
        let answered = tokio::time::timeout(ANSWER_DEADLINE, ping_pong.ping(Ping::opaque())).await;
        match answered {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::warn!(%peer, "HBONE ping timeout: the peer is gone");
                return;
            }
        }
    }
}
