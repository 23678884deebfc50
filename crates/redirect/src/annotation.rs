//! Pod annotations that configure the plan. Pure; annotation text is always parsed and never copied
//! into commands or rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use istio::annotation::{BYPASS_INBOUND, DNS_CAPTURE, REROUTE_INTERFACES};

use crate::plan::{ExistingConnections, InterfaceNameError, Plan, union};

/// Pod ports that clients reach directly.
pub const EXCLUDE_INBOUND_PORTS: &str = "underpass.io/exclude-inbound-ports";
/// Clients that reach the pod directly.
pub const EXCLUDE_INBOUND_CIDRS: &str = "underpass.io/exclude-inbound-cidrs";
/// Remote ports that the pod reaches directly.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "underpass.io/exclude-outbound-ports";
/// Destinations that the pod reaches directly.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "underpass.io/exclude-outbound-cidrs";
/// The annotations by which connections of a pod bypass its proxy; `--allow-exclusions=false` of
/// the agent forbids them.
pub const EXCLUDING: [&str; 5] = [
    BYPASS_INBOUND,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_INBOUND_CIDRS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_CIDRS,
];
/// `keep` or `reset`: how to treat connections that are open when the pod joins.
pub const EXISTING_CONNECTIONS: &str = "underpass.io/existing-connections";

/// All annotations that configure a plan.
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

/// Maximum entries of a list; each becomes a rule that packets traverse.
const MAX_ENTRIES: usize = 64;
/// Maximum length of an annotation in characters; enough for 64 CIDRs.
pub const MAX_ANNOTATION_CHARS: usize = 4096;

/// An annotation with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {reason}")]
pub struct AnnotationError {
    /// The annotation.
    pub annotation: &'static str,
    /// Why the value is invalid.
    pub reason: String,
}

impl Plan {
    /// Applies a pod's annotations. Returns those that are ignored: invalid values of Istio's
    /// booleans, as in istio-cni.
    ///
    /// # Errors
    /// [`AnnotationError`]; the plan is unchanged.
    pub fn apply_annotations<'a>(
        &mut self,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Vec<AnnotationError>, AnnotationError> {
        let mut plan = self.clone();
        let mut ignored = Vec::new();
        let mut boolean = |annotation, of: &mut bool| match get(annotation).map(boolean) {
            Some(Ok(value)) => *of = value,
            Some(Err(reason)) => ignored.push(AnnotationError { annotation, reason }),
            None => {}
        };
        boolean(DNS_CAPTURE, &mut plan.dns);
        boolean(BYPASS_INBOUND, &mut plan.bypass_inbound);
        let interface = |entry: &str| entry.parse().map_err(|e: InterfaceNameError| e.to_string());
        let interfaces = list(&get, REROUTE_INTERFACES, interface)?;
        plan.reroute_interfaces.extend(interfaces);
        let exclude = &mut plan.exclude;
        let (ports, cidrs) = (&mut exclude.inbound_ports, &mut exclude.inbound_cidrs);
        ports.extend(list(&get, EXCLUDE_INBOUND_PORTS, port)?);
        cidrs.extend(list(&get, EXCLUDE_INBOUND_CIDRS, cidr)?);
        let (ports, cidrs) = (&mut exclude.outbound_ports, &mut exclude.outbound_cidrs);
        ports.extend(list(&get, EXCLUDE_OUTBOUND_PORTS, port)?);
        cidrs.extend(list(&get, EXCLUDE_OUTBOUND_CIDRS, cidr)?);
        for (annotation, excluded) in [
            (EXCLUDE_INBOUND_CIDRS, &exclude.inbound_cidrs),
            (EXCLUDE_OUTBOUND_CIDRS, &exclude.outbound_cidrs),
        ] {
            if let Some(all) = union(excluded).iter().find(|net| net.prefix_len() == 0) {
                let reason = format!(
                    "excludes all addresses ({all}); \
                     use the label istio.io/dataplane-mode=none instead"
                );
                return Err(AnnotationError { annotation, reason });
            }
        }
        match get(EXISTING_CONNECTIONS).map(str::trim) {
            None => {}
            Some("keep") => plan.existing_connections = ExistingConnections::Keep,
            Some("reset") => plan.existing_connections = ExistingConnections::Reset,
            Some(other) => {
                let (annotation, other) = (EXISTING_CONNECTIONS, truncated(other));
                let reason = format!("invalid value {other:?}: expected keep or reset");
                return Err(AnnotationError { annotation, reason });
            }
        }
        *self = plan;
        Ok(ignored)
    }
}

/// Parses a comma-separated list; empty entries are ignored.
fn list<'a, T: Ord>(
    get: &impl Fn(&str) -> Option<&'a str>,
    annotation: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<BTreeSet<T>, AnnotationError> {
    let invalid = |reason| AnnotationError { annotation, reason };
    let text = get(annotation).unwrap_or_default();
    if text.chars().nth(MAX_ANNOTATION_CHARS).is_some() {
        let reason = format!("longer than {MAX_ANNOTATION_CHARS} characters");
        return Err(invalid(reason));
    }
    let mut out = BTreeSet::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        out.insert(parse(entry).map_err(invalid)?);
        if out.len() > MAX_ENTRIES {
            return Err(invalid(format!("more than {MAX_ENTRIES} entries")));
        }
    }
    Ok(out)
}

fn port(text: &str) -> Result<u16, String> {
    // `parse` also accepts a plus sign.
    let only_digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|p| only_digits && *p != 0);
    port.ok_or_else(|| format!("invalid port {:?}: expected 1 to 65535", truncated(text)))
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>();
    let net = net.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let net = net.map_err(|_| {
        let text = truncated(text);
        format!("invalid CIDR {text:?}: expected e.g. 10.0.0.0/8 or fd00::/8")
    });
    Ok(net?.trunc())
}

/// Parses a boolean like Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        other => {
            let text = truncated(other);
            Err(format!("invalid boolean {text:?}: expected true or false"))
        }
    }
}

fn truncated(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_with(
        annotations: &[(&'static str, &'static str)],
    ) -> (Plan, Result<Vec<AnnotationError>, AnnotationError>) {
        let mut plan = Plan::for_pod([]);
        let get = |key: &str| annotations.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let result = plan.apply_annotations(get);
        (plan, result)
    }

    #[test]
    fn annotations_are_applied() {
        let (plan, result) = plan_with(&[
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
        assert_eq!(
            plan.reroute_interfaces,
            ["docker0".parse().unwrap(), "vm0".parse().unwrap()].into()
        );
        assert_eq!(plan.exclude.inbound_ports, [1, 9100].into());
        assert_eq!(
            plan.exclude.inbound_cidrs,
            ["10.1.0.0/16".parse().unwrap()].into()
        );
        assert_eq!(plan.exclude.outbound_ports, [65535].into());
        let nets = ["10.2.0.1/32".parse().unwrap(), "fd02::/16".parse().unwrap()];
        assert_eq!(plan.exclude.outbound_cidrs, nets.into());
        assert_eq!(plan.existing_connections, ExistingConnections::Reset);
        assert_eq!(plan_with(&[]), (Plan::for_pod([]), Ok(Vec::new())));
    }

    #[test]
    fn invalid_values_are_rejected_with_the_annotation_name() {
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
            (EXCLUDE_OUTBOUND_CIDRS, "0.0.0.0/1, 128.0.0.0/1"),
            (EXCLUDE_OUTBOUND_CIDRS, "8000::/1,10.0.0.0/8,::/2,4000::/2"),
            (
                EXCLUDE_INBOUND_CIDRS,
                "0.0.0.0/2,64.0.0.0/3,96.0.0.0/3,128.0.0.0/1",
            ),
            (EXCLUDE_OUTBOUND_CIDRS, "example.org"),
            (EXISTING_CONNECTIONS, "cut"),
        ] {
            let (plan, result) = plan_with(&[(DNS_CAPTURE, "true"), (annotation, bad)]);
            let error = result.unwrap_err();
            assert_eq!(error.annotation, annotation, "{bad}");
            assert_eq!(plan, Plan::for_pod([]), "the plan is unchanged");
        }
        let many = (1..=65)
            .map(|p: u32| p.to_string())
            .collect::<Vec<_>>()
            .join(",");
        let mut plan = Plan::for_pod([]);
        assert!(
            plan.apply_annotations(|key| (key == EXCLUDE_INBOUND_PORTS).then_some(many.as_str()))
                .is_err()
        );
    }

    #[test]
    fn invalid_booleans_are_ignored_and_returned() {
        let (plan, result) = plan_with(&[(DNS_CAPTURE, "yes"), (BYPASS_INBOUND, "")]);
        assert_eq!(plan, Plan::for_pod([]));
        let ignored: Vec<_> = result.unwrap().into_iter().map(|i| i.annotation).collect();
        assert_eq!(ignored, [DNS_CAPTURE, BYPASS_INBOUND]);
    }
}
