//! Connects from within a pod, and sees whether the proxy answers.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh::probe;
use netns::NetNs;
use redirect::{CaptureKind, Plan};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::listening::planned;

const DEADLINE: Duration = Duration::from_secs(1);

/// Which listeners of the proxy are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probed {
    /// Every one.
    All,
    /// One that chance chooses: for a pod that was well, and of which nothing else is told.
    One,
}

/// For each family of the pod a connection that has to be captured; and one to listeners of the proxy, by one family that
/// chance chooses, for a listener takes both. The first that is not answered as the proxy of this pod would is the reason.
pub(crate) async fn probe(netns: &NetNs, plan: &Plan, uid: &str, probed: Probed) -> Result<(), String> {
    let of_family = |v6: bool| plan.addresses.iter().copied().find(|a| a.is_ipv6() == v6);
    let families: Vec<IpAddr> = [false, true].into_iter().filter_map(of_family).collect();
    let chosen = rand::random::<u32>() as usize % families.len().max(1);
    let ports: Vec<u16> = match probed {
        Probed::All => planned(plan).collect(),
        Probed::One => planned(plan).nth(rand::random_range(0..planned(plan).count())).into_iter().collect(),
    };
    for (index, own) in families.into_iter().enumerate() {
        match ask(netns, None, probe::destination(own), uid).await {
            // NAT takes what is about to leave. From a pod without a default route the probe does not get that far, nor would
            // anything else that goes there.
            Err(Failure::Unreachable(_)) if plan.capture != CaptureKind::Routed => {}
            asked => asked.map_err(Failure::into_reason)?,
        }
        for &port in ports.iter().filter(|_| index == chosen) {
            // Another source port each time: of sockets that share a port, now one is met, now another.
            ask(netns, Some(probe::source(own)), SocketAddr::new(own, port), uid)
                .await
                .map_err(Failure::into_reason)?;
        }
    }
    Ok(())
}

/// Why a probe failed.
enum Failure {
    /// There is no route to its destination.
    Unreachable(String),
    Other(String),
}

impl Failure {
    fn into_reason(self) -> String {
        match self {
            Self::Unreachable(why) | Self::Other(why) => why,
        }
    }
}

async fn ask(netns: &NetNs, from: Option<IpAddr>, to: SocketAddr, uid: &str) -> Result<(), Failure> {
    let token = format!("{:016x}", rand::random::<u64>());
    let failed = |what: &str| Failure::Other(format!("a probe to {to} {what}"));
    let socket = netns.run(|| {
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        from.map_or(Ok(()), |from| socket.bind(SocketAddr::new(from, 0)))?;
        // Or the proxy's end would stay in TIME_WAIT, and with it the proxy's port in the pod.
        netns::sockopt::reset_on_close(&socket)?;
        Ok::<_, std::io::Error>(socket)
    });
    let socket = socket.map_err(|e| failed(&e.to_string()))?.map_err(|e| failed(&format!("cannot be sent: {e}")))?;
    let exchange = async {
        let mut stream = socket.connect(to).await?;
        stream.write_all(format!("{token}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(1024).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(DEADLINE, exchange).await {
        Ok(Ok(answer)) if answer == probe::answer(&token, uid) => Ok(()),
        Ok(Ok(_)) => Err(failed("was answered by something that is not the proxy of this pod")),
        Ok(Err(e)) if e.kind() == ErrorKind::NetworkUnreachable => {
            Err(Failure::Unreachable(format!("a probe to {to} failed: {e}")))
        }
        Ok(Err(e)) => Err(failed(&format!("failed: {e}"))),
        Err(_) => Err(failed("was not answered")),
    }
}
