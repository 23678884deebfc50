//! The agent asks whether connections of a pod arrive here. Not connections of the application: not logged or counted.

use std::net::SocketAddr;
use std::time::Duration;

use mesh::probe::{self, LONGEST_QUESTION};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::inpod::Pod;

const DEADLINE: Duration = Duration::from_secs(1);

/// Whether a connection that a listener of ours has accepted is a direct probe.
pub(super) fn is_direct(stream: &TcpStream, peer: SocketAddr) -> bool {
    // The peer first: only then is it worth a system call.
    peer.ip().is_loopback() && stream.local_addr().is_ok_and(|local| probe::is_direct(peer, local))
}

/// Answers a probe, of either kind.
pub(super) async fn answer(mut stream: TcpStream, pod: &Pod) {
    let exchange = async {
        let mut question = Vec::new();
        let mut reader = BufReader::new(&mut stream).take(LONGEST_QUESTION as u64);
        reader.read_until(b'\n', &mut question).await?;
        let token = String::from_utf8_lossy(&question);
        stream.write_all(probe::answer(token.trim_end(), &pod.uid).as_bytes()).await
    };
    let _ = timeout(DEADLINE, exchange).await; // an agent that does not read is told nothing
}
