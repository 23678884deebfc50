//! DNS settings of a node.

use std::net::{IpAddr, SocketAddr};

/// Default port of name servers.
const PORT: u16 = 53;
/// Resolver configuration of the proxy itself.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// DNS settings that apply to all pods of a node.
#[derive(Debug)]
pub struct Settings {
    /// Cluster domain, in lower case and without leading or trailing dots.
    pub(super) cluster_domain: String,
    /// Name servers to query, in order, if the one that the application queried is unknown.
    pub(super) upstreams: Vec<SocketAddr>,
}

impl Settings {
    /// Creates settings with these name servers, or those of resolv.conf if `upstreams` is empty.
    pub fn new(cluster_domain: &str, upstreams: Vec<SocketAddr>) -> Self {
        let cluster_domain = cluster_domain.trim_matches('.').to_ascii_lowercase();
        if !upstreams.is_empty() {
            return Self {
                cluster_domain,
                upstreams,
            };
        }
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_else(|e| {
            tracing::warn!("cannot read {RESOLV_CONF}, no name server is configured: {e}");
            String::new()
        });
        Self {
            cluster_domain,
            upstreams: parse_resolv_conf(&text),
        }
    }

    /// The name servers to query if the one that the application queried is unknown.
    pub fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }
}

/// Parses the name servers in a resolv.conf. Loopback addresses are ignored, because queries are
/// sent from within pods.
fn parse_resolv_conf(resolv_conf: &str) -> Vec<SocketAddr> {
    let of_line = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["nameserver", address, ..] => address.parse().ok(),
        _ => None,
    };
    let addresses = resolv_conf
        .lines()
        .filter_map(of_line)
        .filter(|ip: &IpAddr| !ip.is_loopback());
    addresses.map(|ip| SocketAddr::new(ip, PORT)).collect()
}

/// Parses `ADDRESS` or `ADDRESS:PORT`.
pub fn parse_name_server(text: &str) -> Result<SocketAddr, String> {
    let without_port = text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .map(|ip| SocketAddr::new(ip, PORT));
    without_port
        .or_else(|_| text.parse())
        .map_err(|_| format!("invalid address {text:?}: expected e.g. 10.96.0.10 or [fd96::10]:53"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_parsed() {
        let text = "# a comment\nsearch a b\nnameserver 10.96.0.10\n nameserver\tfd96::10 # \
                    x\nnameserver 127.0.0.53\nnameserver\nnameserver x\noptions ndots:5\n";
        let expected: Vec<SocketAddr> = ["10.96.0.10:53", "[fd96::10]:53"]
            .map(|a| a.parse().unwrap())
            .into();
        assert_eq!(parse_resolv_conf(text), expected);
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1:53"),
            ("10.0.0.1:5353", "10.0.0.1:5353"),
            ("fd96::1", "[fd96::1]:53"),
            ("[fd96::1]:54", "[fd96::1]:54"),
        ] {
            assert_eq!(parse_name_server(text), Ok(address.parse().unwrap()));
        }
        assert!(parse_name_server("dns.example").is_err());
        assert_eq!(
            Settings::new("Cluster.Local.", vec![expected[0]]).cluster_domain,
            "cluster.local"
        );
    }
}
