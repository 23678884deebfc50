//! Whether the proxy's ports in a pod are the proxy's: decided from a dump of the sockets that listen there.

use redirect::{Listener, Plan};

use crate::verification::Finding;

/// Every port of the plan is listened on, and by nobody but the proxy.
///
/// Two sockets can share a port (SO_REUSEPORT), and each then gets a part of the connections; so one that does not look
/// like the proxy's is one too many, whatever else is there.
pub(crate) fn check(plan: &Plan, listeners: &[Listener]) -> Result<(), Finding> {
    for port in planned(plan) {
        if let Some(stranger) = listeners.iter().find(|l| l.address.port() == port && !is_proxys(plan, l)) {
            return Err(Finding::Silence(format!(
                "port {port} in the pod is listened on by something that is not the proxy: a socket of user {} at {}",
                stranger.uid, stranger.address
            )));
        }
    }
    match planned(plan).find(|port| !listeners.iter().any(|l| l.address.port() == *port)) {
        Some(port) => Err(Finding::Silence(format!("nobody listens on port {port} in the pod: the proxy is away"))),
        None => Ok(()),
    }
}

/// The ports that the proxy has in a pod.
pub(crate) fn planned(plan: &Plan) -> impl Iterator<Item = u16> + use<> {
    let ports = plan.ports;
    [ports.outbound, ports.inbound, ports.hbone].into_iter().chain(plan.dns.then_some(ports.dns))
}

/// The proxy marks its sockets, and takes connections to any address.
fn is_proxys(plan: &Plan, listener: &Listener) -> bool {
    listener.mark & plan.mark.mask == plan.mark.value && listener.transparent != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(port: u16, mark: u32, transparent: Option<bool>) -> Listener {
        Listener { address: ([0, 0, 0, 0], port).into(), mark, transparent, uid: 1000 }
    }

    fn proxys(plan: &Plan) -> Vec<Listener> {
        planned(plan).map(|port| listener(port, 0x539, Some(true))).collect()
    }

    #[test]
    fn ports_are_the_proxys_missing_or_somebody_elses() {
        let mut plan = Plan::for_pod([]);
        let good = proxys(&plan);
        assert_eq!(check(&plan, &good), Ok(()));
        let why = |listeners: &[Listener]| check(&plan, listeners).unwrap_err().to_string();
        for (index, port) in [15001, 15006, 15008].into_iter().enumerate() {
            let mut missing = good.clone();
            missing.remove(index);
            assert!(why(&missing).contains(&format!("nobody listens on port {port}")));
            for stranger in [listener(port, 0, Some(true)), listener(port, 0x539, Some(false))] {
                let mut shared = good.clone();
                shared.push(stranger);
                assert!(why(&shared).contains(&format!("port {port} in the pod is listened on by something")));
            }
        }
        let mut others = good.clone();
        others.push(listener(8080, 0, Some(false)));
        assert_eq!(check(&plan, &others), Ok(()), "other ports are the application's");
        let unknown: Vec<Listener> = good.iter().map(|l| Listener { transparent: None, ..*l }).collect();
        assert_eq!(check(&plan, &unknown), Ok(()), "an old kernel does not tell");
        plan.dns = true;
        assert!(check(&plan, &good).unwrap_err().to_string().contains("15053"));
        assert_eq!(check(&plan, &proxys(&plan)), Ok(()));
    }
}
