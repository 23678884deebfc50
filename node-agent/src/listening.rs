//! Checks, from a dump of listening sockets, that the proxy's ports in a pod belong to the proxy.

use agent_status::VerificationReason;
use pod_life::Finding;
use redirect::{Listener, Plan};

/// Checks that the proxy, and nothing else, listens on every port of the plan.
///
/// Sockets can share a port (SO_REUSEPORT), each receiving some of the connections, so a foreign
/// socket is an error even if the proxy listens as well.
pub(crate) fn check(plan: &Plan, listeners: &[Listener]) -> Result<(), Finding> {
    for port in proxy_ports(plan) {
        let is_foreign = |l: &&Listener| l.address.port() == port && !is_proxy_socket(plan, l);
        if let Some(foreign) = listeners.iter().find(is_foreign) {
            let why = format!(
                "a process other than the proxy listens on port {port} in the pod: uid {} at {}",
                foreign.uid, foreign.address
            );
            return Err(Finding::Unverified(
                VerificationReason::ForeignListener,
                why,
            ));
        }
    }
    match proxy_ports(plan).find(|port| !listeners.iter().any(|l| l.address.port() == *port)) {
        Some(port) => {
            let why = format!("nothing listens on port {port} in the pod: the proxy is down");
            Err(Finding::Unverified(
                VerificationReason::ProxyNotListening,
                why,
            ))
        }
        None => Ok(()),
    }
}

/// The ports on which the proxy listens in a pod.
pub(crate) fn proxy_ports(plan: &Plan) -> impl Iterator<Item = u16> + use<> {
    let ports = plan.ports;
    [ports.outbound, ports.inbound, ports.hbone]
        .into_iter()
        .chain(plan.dns.then_some(ports.dns))
}

/// Whether a socket is the proxy's: it has the proxy's mark and is transparent.
fn is_proxy_socket(plan: &Plan, listener: &Listener) -> bool {
    listener.mark & plan.mark.mask == plan.mark.value && listener.transparent != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(port: u16, mark: u32, transparent: Option<bool>) -> Listener {
        Listener {
            address: ([0, 0, 0, 0], port).into(),
            mark,
            transparent,
            uid: 1000,
        }
    }

    fn proxy_listeners(plan: &Plan) -> Vec<Listener> {
        proxy_ports(plan)
            .map(|port| listener(port, 0x539, Some(true)))
            .collect()
    }

    #[test]
    fn missing_and_foreign_listeners_are_reported() {
        let mut plan = Plan::for_pod([]);
        let good = proxy_listeners(&plan);
        assert_eq!(check(&plan, &good), Ok(()));
        let why = |listeners: &[Listener]| check(&plan, listeners).unwrap_err().to_string();
        for (index, port) in [15001, 15006, 15008].into_iter().enumerate() {
            let mut missing = good.clone();
            missing.remove(index);
            assert!(why(&missing).contains(&format!("nothing listens on port {port}")));
            for foreign in [
                listener(port, 0, Some(true)),
                listener(port, 0x539, Some(false)),
            ] {
                let mut shared = good.clone();
                shared.push(foreign);
                let expected = format!("a process other than the proxy listens on port {port}");
                assert!(why(&shared).contains(&expected));
            }
        }
        let mut others = good.clone();
        others.push(listener(8080, 0, Some(false)));
        assert_eq!(
            check(&plan, &others),
            Ok(()),
            "other ports belong to the application"
        );
        let unknown: Vec<Listener> = good
            .iter()
            .map(|l| Listener {
                transparent: None,
                ..*l
            })
            .collect();
        assert_eq!(
            check(&plan, &unknown),
            Ok(()),
            "old kernels do not report transparency"
        );
        plan.dns = true;
        assert!(
            check(&plan, &good)
                .unwrap_err()
                .to_string()
                .contains("15053")
        );
        assert_eq!(check(&plan, &proxy_listeners(&plan)), Ok(()));
    }
}
