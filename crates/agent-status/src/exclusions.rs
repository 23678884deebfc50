//! Connections of a pod that bypass its proxy.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Connections of a pod that bypass its proxy because of its annotations, in plain text and without
/// policies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExclusionsStatus {
    /// Whether all plaintext connections to the pod do.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bypass_inbound: bool,
    /// Ports of the pod that clients reach directly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbound_ports: Vec<u16>,
    /// Clients that reach the pod directly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbound_cidrs: Vec<IpNet>,
    /// Remote ports that the pod reaches directly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound_ports: Vec<u16>,
    /// Destinations that the pod reaches directly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound_cidrs: Vec<IpNet>,
}

impl ExclusionsStatus {
    /// What excludes connections from the pod to this destination.
    pub fn of_outbound(&self, to: SocketAddr) -> Option<String> {
        matching(&self.outbound_ports, to.port(), "remote port")
            .or_else(|| containing(&self.outbound_cidrs, to.ip(), "destination"))
    }

    /// What excludes plaintext connections from this client to this port of the pod.
    pub fn of_inbound(&self, from: Option<IpAddr>, port: u16) -> Option<String> {
        let all = "all plaintext connections to it";
        let by_client = || containing(&self.inbound_cidrs, from?, "client");
        let all = self.bypass_inbound.then(|| all.to_owned());
        all.or_else(|| matching(&self.inbound_ports, port, "port"))
            .or_else(by_client)
    }
}

fn matching(ports: &[u16], port: u16, what: &str) -> Option<String> {
    ports.contains(&port).then(|| format!("{what} {port}"))
}

fn containing(nets: &[IpNet], address: IpAddr, what: &str) -> Option<String> {
    let net = nets.iter().find(|net| net.contains(&address))?;
    Some(format!("{what} {net}"))
}

impl fmt::Display for ExclusionsStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(what: &str, of: &[T]) -> Option<String> {
            let all: Vec<String> = of.iter().map(T::to_string).collect();
            (!all.is_empty()).then(|| format!("{what} {}", all.join(", ")))
        }
        let all = self
            .bypass_inbound
            .then(|| "all plaintext clients".to_owned());
        let parts = [
            all,
            list("ports", &self.inbound_ports),
            list("clients", &self.inbound_cidrs),
            list("remote ports", &self.outbound_ports),
            list("destinations", &self.outbound_cidrs),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exclusions() -> ExclusionsStatus {
        ExclusionsStatus {
            bypass_inbound: false,
            inbound_ports: vec![9100, 9101],
            inbound_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
            outbound_ports: vec![3306],
            outbound_cidrs: vec!["10.2.0.0/16".parse().unwrap(), "fd02::/16".parse().unwrap()],
        }
    }

    #[test]
    fn exclusions_are_listed_and_matched_with_connections() {
        let excluded = exclusions();
        assert_eq!(
            excluded.to_string(),
            "ports 9100, 9101; clients 10.1.0.0/16; remote ports 3306; \
             destinations 10.2.0.0/16, fd02::/16"
        );
        let outbound = |to: &str| excluded.of_outbound(to.parse().unwrap());
        assert_eq!(
            outbound("10.9.0.1:3306").as_deref(),
            Some("remote port 3306")
        );
        let expected = Some("destination fd02::/16");
        assert_eq!(outbound("[fd02::1]:80").as_deref(), expected);
        assert_eq!(outbound("10.1.0.1:9100"), None);
        let inbound = |from: &str, port| excluded.of_inbound(from.parse().ok(), port);
        assert_eq!(inbound("10.9.0.1", 9100).as_deref(), Some("port 9100"));
        assert_eq!(
            inbound("10.1.2.3", 80).as_deref(),
            Some("client 10.1.0.0/16")
        );
        assert_eq!(inbound("10.2.0.1", 3306), None);
        let all = ExclusionsStatus {
            bypass_inbound: true,
            ..ExclusionsStatus::default()
        };
        assert!(all.of_inbound(None, 80).is_some() && all.to_string().contains("all"));
    }
}
