//! What is the same for all pods of a node.

use std::net::{IpAddr, SocketAddr};

use super::Resolver;

/// The port of name servers.
const PORT: u16 = 53;
/// What this process itself resolves names with.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How names are answered on this node.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Lower case, without dots at its ends.
    pub(super) cluster_domain: String,
    /// Who is asked when it is not known whom the application asked, in order.
    pub(super) upstreams: Vec<SocketAddr>,
}

impl Settings {
    /// With these name servers; if there are none, with those of this process.
    pub(crate) fn new(cluster_domain: &str, upstreams: Vec<SocketAddr>) -> Self {
        let cluster_domain = cluster_domain.trim_matches('.').to_ascii_lowercase();
        if !upstreams.is_empty() {
            return Self { cluster_domain, upstreams };
        }
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_else(|e| {
            tracing::warn!("{RESOLV_CONF}: {e}");
            String::new()
        });
        Self { cluster_domain, upstreams: name_servers(&text) }
    }

    /// What looks up names for the proxy itself, with the same name servers.
    pub(crate) fn resolver(&self) -> Resolver {
        Resolver::new(self.upstreams.clone())
    }
}

/// The name servers of a resolv.conf, but for those on a loopback address: a pod's loopback is not ours.
fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let of_line = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["nameserver", address, ..] => address.parse().ok(),
        _ => None,
    };
    let addresses = resolv_conf.lines().filter_map(of_line).filter(|ip: &IpAddr| !ip.is_loopback());
    addresses.map(|ip| SocketAddr::new(ip, PORT)).collect()
}

/// Reads `ADDRESS` or `ADDRESS:PORT`.
pub(crate) fn name_server(text: &str) -> Result<SocketAddr, String> {
    let without_port = text.trim_start_matches('[').trim_end_matches(']').parse().map(|ip| SocketAddr::new(ip, PORT));
    without_port
        .or_else(|_| text.parse())
        .map_err(|_| format!("{text:?} is no address such as 10.96.0.10 or [fd96::10]:53"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read() {
        let text = "# a comment\nsearch a b\nnameserver 10.96.0.10\n nameserver\tfd96::10 # x\nnameserver 127.0.0.53\nnameserver\nnameserver x\noptions ndots:5\n";
        let expected: Vec<SocketAddr> = ["10.96.0.10:53", "[fd96::10]:53"].map(|a| a.parse().unwrap()).into();
        assert_eq!(name_servers(text), expected);
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1:53"),
            ("10.0.0.1:5353", "10.0.0.1:5353"),
            ("fd96::1", "[fd96::1]:53"),
            ("[fd96::1]:54", "[fd96::1]:54"),
        ] {
            assert_eq!(name_server(text), Ok(address.parse().unwrap()));
        }
        assert!(name_server("dns.example").is_err());
        assert_eq!(Settings::new("Cluster.Local.", vec![expected[0]]).cluster_domain, "cluster.local");
    }
}
