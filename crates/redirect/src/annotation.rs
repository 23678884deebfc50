//! What a pod's annotations say of its plan. Pure; nothing of them is ever part of a command or a rule's text unparsed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::plan::{ExistingConnections, InterfaceNameError, Plan};

/// Istio's: whether the pod's DNS is captured; over the node's default, either way.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Istio's: whether plaintext connections to the pod are left alone.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Istio's: interfaces by which connections come in that count as the pod's own.
pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// Ports of the pod that clients reach directly.
pub const EXCLUDE_INBOUND_PORTS: &str = "underpass.io/exclude-inbound-ports";
/// Clients that reach the pod directly.
pub const EXCLUDE_INBOUND_CIDRS: &str = "underpass.io/exclude-inbound-cidrs";
/// Ports elsewhere that the pod reaches directly.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "underpass.io/exclude-outbound-ports";
/// Destinations that the pod reaches directly.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "underpass.io/exclude-outbound-cidrs";
/// `keep` or `reset`: what becomes of connections that are open when the pod joins.
pub const EXISTING_CONNECTIONS: &str = "underpass.io/existing-connections";

/// Every annotation that a plan looks at.
pub const ANNOTATIONS: [&str; 8] = [
    DNS_CAPTURE,
    BYPASS_INBOUND,
    REROUTE_INTERFACES,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_INBOUND_CIDRS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_CIDRS,
    EXISTING_CONNECTIONS,
];

/// Every entry is a rule that packets pass.
const MOST_ENTRIES: usize = 64;
/// Longer lists are refused, in characters; 64 CIDRs fit.
pub const LONGEST_ANNOTATION: usize = 4096;

/// An annotation that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {why}")]
pub struct AnnotationError {
    /// Which annotation.
    pub annotation: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Plan {
    /// Does what annotations say. Returns what is ignored: Istio's booleans are, where they are none, as istio-cni does.
    ///
    /// # Errors
    /// [`AnnotationError`]; then the plan is as it was.
    pub fn follow<'a>(
        &mut self,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Vec<AnnotationError>, AnnotationError> {
        let mut plan = self.clone();
        let mut ignored = Vec::new();
        let mut boolean = |annotation, of: &mut bool| match get(annotation).map(boolean) {
            Some(Ok(value)) => *of = value,
            Some(Err(why)) => ignored.push(AnnotationError { annotation, why }),
            None => {}
        };
        boolean(DNS_CAPTURE, &mut plan.dns);
        boolean(BYPASS_INBOUND, &mut plan.bypass_inbound);
        let interface = |entry: &str| entry.parse().map_err(|e: InterfaceNameError| e.to_string());
        list(&get, REROUTE_INTERFACES, interface, &mut plan.reroute_interfaces)?;
        list(&get, EXCLUDE_INBOUND_PORTS, port, &mut plan.exclude.inbound_ports)?;
        list(&get, EXCLUDE_INBOUND_CIDRS, cidr, &mut plan.exclude.inbound_cidrs)?;
        list(&get, EXCLUDE_OUTBOUND_PORTS, port, &mut plan.exclude.outbound_ports)?;
        list(&get, EXCLUDE_OUTBOUND_CIDRS, cidr, &mut plan.exclude.outbound_cidrs)?;
        match get(EXISTING_CONNECTIONS).map(str::trim) {
            None => {}
            Some("keep") => plan.existing_connections = ExistingConnections::Keep,
            Some("reset") => plan.existing_connections = ExistingConnections::Reset,
            Some(other) => {
                let why = format!("{:?} is neither keep nor reset", shortened(other));
                return Err(AnnotationError { annotation: EXISTING_CONNECTIONS, why });
            }
        }
        *self = plan;
        Ok(ignored)
    }
}

/// Reads a list whose entries are separated by commas; empty entries are nothing.
fn list<'a, T: Ord>(
    get: &impl Fn(&str) -> Option<&'a str>,
    annotation: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
    into: &mut BTreeSet<T>,
) -> Result<(), AnnotationError> {
    let Some(text) = get(annotation) else { return Ok(()) };
    if text.chars().nth(LONGEST_ANNOTATION).is_some() {
        return Err(AnnotationError { annotation, why: format!("it is longer than {LONGEST_ANNOTATION} characters") });
    }
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        into.insert(parse(entry).map_err(|why| AnnotationError { annotation, why })?);
        if into.len() > MOST_ENTRIES {
            return Err(AnnotationError { annotation, why: format!("it has more than {MOST_ENTRIES} entries") });
        }
    }
    Ok(())
}

fn port(text: &str) -> Result<u16, String> {
    // Not what `parse` takes also: a plus sign.
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|p| digits && *p != 0);
    port.ok_or_else(|| format!("{:?} is no port (1 to 65535)", shortened(text)))
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let net = net.map_err(|_| format!("{:?} is neither a CIDR nor an address", shortened(text)))?.trunc();
    if net.prefix_len() == 0 {
        return Err(format!("{net} leaves everything alone; the label istio.io/dataplane-mode=none says that"));
    }
    Ok(net)
}

/// As Go's strconv.ParseBool.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        other => Err(format!("{:?} is neither true nor false", shortened(other))),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(annotations: &[(&'static str, &'static str)]) -> (Plan, Result<Vec<AnnotationError>, AnnotationError>) {
        let mut plan = Plan::for_pod([]);
        let get = |key: &str| annotations.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let result = plan.follow(get);
        (plan, result)
    }

    #[test]
    fn annotations_are_followed() {
        let (plan, result) = follow(&[
            (DNS_CAPTURE, "true"),
            (BYPASS_INBOUND, "T"),
            (REROUTE_INTERFACES, "vm0, docker0,,"),
            (EXCLUDE_INBOUND_PORTS, "9100,9100, 1"),
            (EXCLUDE_INBOUND_CIDRS, "10.1.2.3/16"),
            (EXCLUDE_OUTBOUND_PORTS, "65535"),
            (EXCLUDE_OUTBOUND_CIDRS, "10.2.0.1,fd02::/16"),
            (EXISTING_CONNECTIONS, "reset"),
        ]);
        assert_eq!(result, Ok(Vec::new()));
        assert!(plan.dns && plan.bypass_inbound);
        assert_eq!(plan.reroute_interfaces, ["docker0".parse().unwrap(), "vm0".parse().unwrap()].into());
        assert_eq!(plan.exclude.inbound_ports, [1, 9100].into());
        assert_eq!(plan.exclude.inbound_cidrs, ["10.1.0.0/16".parse().unwrap()].into());
        assert_eq!(plan.exclude.outbound_ports, [65535].into());
        let nets = ["10.2.0.1/32".parse().unwrap(), "fd02::/16".parse().unwrap()];
        assert_eq!(plan.exclude.outbound_cidrs, nets.into());
        assert_eq!(plan.existing_connections, ExistingConnections::Reset);
        assert_eq!(follow(&[]), (Plan::for_pod([]), Ok(Vec::new())));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_and_named() {
        for (annotation, bad) in [
            (REROUTE_INTERFACES, "eth0;reboot"),
            (REROUTE_INTERFACES, "-j ACCEPT"),
            (REROUTE_INTERFACES, "sixteen-bytes-xx"),
            (EXCLUDE_INBOUND_PORTS, "0"),
            (EXCLUDE_INBOUND_PORTS, "+80"),
            (EXCLUDE_OUTBOUND_PORTS, "65536"),
            (EXCLUDE_OUTBOUND_PORTS, "80-90"),
            (EXCLUDE_INBOUND_CIDRS, "10.0.0.0/33"),
            (EXCLUDE_OUTBOUND_CIDRS, "0.0.0.0/0"),
            (EXCLUDE_OUTBOUND_CIDRS, "::/0"),
            (EXCLUDE_OUTBOUND_CIDRS, "example.org"),
            (EXISTING_CONNECTIONS, "cut"),
        ] {
            let (plan, result) = follow(&[(DNS_CAPTURE, "true"), (annotation, bad)]);
            let error = result.unwrap_err();
            assert_eq!(error.annotation, annotation, "{bad}");
            assert_eq!(plan, Plan::for_pod([]), "the plan is as it was");
        }
        let many = (1..=65).map(|p: u32| p.to_string()).collect::<Vec<_>>().join(",");
        let mut plan = Plan::for_pod([]);
        assert!(plan.follow(|key| (key == EXCLUDE_INBOUND_PORTS).then_some(many.as_str())).is_err());
    }

    #[test]
    fn a_boolean_that_is_none_is_ignored_and_told() {
        let (plan, result) = follow(&[(DNS_CAPTURE, "yes"), (BYPASS_INBOUND, "")]);
        assert_eq!(plan, Plan::for_pod([]));
        let ignored: Vec<_> = result.unwrap().into_iter().map(|i| i.annotation).collect();
        assert_eq!(ignored, [DNS_CAPTURE, BYPASS_INBOUND]);
    }
}
