//! Answers to the agent's probes, which verify that a pod's connections reach the proxy. Probes are
//! not application traffic and therefore neither logged nor counted.

use std::time::Duration;

use mesh::ClientAddr;
use mesh::probe::{self, MAX_PROBE_LINE};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::inpod::Pod;

const DEADLINE: Duration = Duration::from_secs(1);

/// Whether an accepted connection is a direct probe.
pub(super) fn is_direct_probe(stream: &TcpStream, peer: ClientAddr) -> bool {
    // The peer address is checked first because it needs no system call.
    peer.ip().is_loopback()
        && stream
            .local_addr()
            .is_ok_and(|local| probe::is_direct_probe(peer.0, local))
}

/// Answers a probe of either kind.
pub(super) async fn answer(mut stream: TcpStream, pod: &Pod) {
    let exchange = async {
        let mut question = Vec::new();
        let mut reader = BufReader::new(&mut stream).take(MAX_PROBE_LINE as u64);
        reader.read_until(b'\n', &mut question).await?;
        let token = String::from_utf8_lossy(&question);
        stream
            .write_all(probe::answer(token.trim_end(), &pod.uid).as_bytes())
            .await
    };
    let _ = timeout(DEADLINE, exchange).await; // best effort: the agent reports a missing answer
}
