//! Connecting to one of a server's addresses, like RFC 8305 (Happy Eyeballs): the families
//! alternate, an address that does not answer does not delay the next one for long, and the last
//! good address comes first.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

/// Delay between the attempts to connect to two addresses, RFC 8305 section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// What is known of the addresses of a server from earlier connections.
#[derive(Debug, Default)]
pub(crate) struct KnownAddresses {
    /// The addresses of the last successful name resolution.
    resolved: Vec<SocketAddr>,
    last_good: Option<SocketAddr>,
    /// Addresses that accepted a connection but failed afterwards, since the last good one.
    failed: Vec<SocketAddr>,
}

impl KnownAddresses {
    /// Orders the resolved addresses for connecting. If the name could not be resolved, the
    /// previous addresses are used.
    pub(crate) fn candidates(
        &mut self,
        resolved: io::Result<Vec<SocketAddr>>,
    ) -> Result<Vec<SocketAddr>, String> {
        match resolved {
            Ok(addresses) if !addresses.is_empty() => self.resolved = alternate(addresses),
            Ok(_) if self.resolved.is_empty() => {
                return Err("the host name has no address".to_owned());
            }
            Err(e) if self.resolved.is_empty() => return Err(e.to_string()),
            Ok(_) | Err(_) => {}
        }
        let mut candidates = self.resolved.clone();
        candidates.sort_by_key(|a| (self.failed.contains(a), self.last_good != Some(*a)));
        Ok(candidates)
    }

    /// Records that the server at this address is good.
    pub(crate) fn record_good(&mut self, address: SocketAddr) {
        self.last_good = Some(address);
        self.failed.clear();
    }

    /// Records that the server at this address failed after it accepted a connection.
    pub(crate) fn record_failed(&mut self, address: SocketAddr) {
        self.last_good = self.last_good.filter(|good| *good != address);
        self.failed
            .retain(|a| self.resolved.contains(a) && *a != address);
        self.failed.push(address);
    }

    /// Records that the last good address has stopped to answer requests.
    pub(crate) fn record_unresponsive(&mut self) {
        if let Some(address) = self.last_good {
            self.record_failed(address);
        }
    }
}

/// Orders addresses so that the families alternate, beginning with that of the first, without
/// duplicates.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .partition(|a| a.is_ipv6() == first_is_ipv6);
    let mut all = Vec::new();
    while !first.is_empty() || !second.is_empty() {
        for address in [first.pop_front(), second.pop_front()]
            .into_iter()
            .flatten()
        {
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    all
}

/// Connects to the addresses, starting with the next one [`ATTEMPT_DELAY`] after the previous one
/// or as soon as that one failed, and returns the first connection. Fails with the error of each
/// address.
pub(crate) async fn connect_first<T, F>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, T), String>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut waiting = addresses.iter().copied();
    let (mut attempts, mut errors) = (JoinSet::new(), Vec::new());
    loop {
        let mut is_last = true;
        if let Some(address) = waiting.next() {
            let attempt = connect(address);
            attempts.spawn(async move { (address, attempt.await) });
            is_last = false;
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok((address, Ok(connected)))) => return Ok((address, connected)),
                Some(Ok((address, Err(e)))) => errors.push(format!("{address}: {e}")),
                Some(Err(e)) => errors.push(e.to_string()), // a bug: the attempt panicked
                None => return Err(errors.join("; ")),
            },
            () = sleep(ATTEMPT_DELAY), if !is_last => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn three() -> Vec<SocketAddr> {
        ["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"]
            .map(address)
            .into()
    }

    #[test]
    fn families_alternate_and_the_last_good_address_comes_first() {
        let mut known = KnownAddresses::default();
        let [v4, next_v4, v6] = [0, 1, 2].map(|i| three()[i]);
        assert!(known.candidates(Ok(vec![])).is_err());
        assert_eq!(known.candidates(Ok(three())).unwrap(), [v4, v6, next_v4]);
        known.record_good(next_v4);
        assert_eq!(known.candidates(Ok(three())).unwrap(), [next_v4, v4, v6]);
        known.record_failed(next_v4);
        known.record_failed(v4);
        assert_eq!(known.candidates(Ok(three())).unwrap(), [v6, v4, next_v4]);
        let unresolved = known.candidates(Err(io::ErrorKind::TimedOut.into()));
        assert_eq!(unresolved.unwrap(), [v6, v4, next_v4], "the previous ones");
    }

    #[tokio::test]
    async fn a_silent_address_does_not_delay_the_next_one() {
        let connect = |to: SocketAddr| async move {
            match to.ip().to_string().as_str() {
                "10.0.0.1" => std::future::pending().await,
                "10.0.0.2" => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => Ok(to.port()),
            }
        };
        let begun = std::time::Instant::now();
        assert_eq!(connect_first(&three(), connect).await, Ok((three()[2], 1)));
        assert!(
            begun.elapsed() >= ATTEMPT_DELAY,
            "the first one has a head start"
        );
        let error = connect_first(&three()[1..2], connect).await.unwrap_err();
        assert!(
            error.starts_with("10.0.0.2:1: connection refused"),
            "{error}"
        );
        assert!(connect_first(&[], connect).await.is_err());
    }
}
