//! Detection of unresponsive peers by HTTP/2 pings.

use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::heard::Heard;
use crate::silence::{self, log_unresponsive};

/// Idle time between pings, like ztunnel's. A peer that has sent anything meanwhile is not pinged.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a pinged peer may send nothing at all, like ztunnel's deadline for the answer. On a
/// slow link, the answer may wait behind much data.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// What is known about the life of a tunnel's peer. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Liveness {
    pub(crate) heard: Heard,
    ping_now: Rc<Notify>,
}

impl Liveness {
    /// Pings the peer when it has sent nothing for a while, or when asked to. Returns when a ping
    /// times out or the connection has closed.
    pub(crate) async fn until_unresponsive(&self, ping_pong: Option<PingPong>, peer: impl Display) {
        let Some(mut ping_pong) = ping_pong else {
            return std::future::pending().await;
        };
        let mut heard = self.heard.count();
        loop {
            let is_idle = tokio::select! {
                () = sleep(INTERVAL) => self.heard.count() == heard,
                () = self.ping_now.notified() => true,
            };
            heard = self.heard.count();
            if !is_idle {
                continue;
            }
            let pong = ping_pong.ping(Ping::opaque());
            tokio::pin!(pong);
            loop {
                match timeout(ANSWER_DEADLINE, &mut pong).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(_)) => return,
                    Err(_) if self.heard.count() != heard => heard = self.heard.count(),
                    Err(_) => {
                        log_unresponsive(peer);
                        return;
                    }
                }
            }
            heard = self.heard.count();
        }
    }

    /// Completes when the peer does not even answer a ping, which takes about a second and a half.
    /// For the time in which something waits for the peer.
    pub(crate) async fn until_silent(&self) {
        silence::until_silent(|| self.heard.count(), || self.ping_now.notify_one()).await;
    }
}
