//! `underpass why`: explains how a connection would be routed and whether policies allow it.

use std::net::SocketAddr;
use std::process::ExitCode;

use agent_status::{PodState, PodStatus};
use error_code::cli as codes;
use http::StatusCode;
use mesh::explain::{
    ExplainedRoute, Explanation, ExplanationResponse, Party, PolicyDecision, RouteKind,
    TransportProtocol,
};
use serde::Serialize;

use crate::admin_client::node_status;
use crate::failure::failure;
use crate::output::{exit_code, print_as};
use crate::proxy::ProxyArgs;
use crate::proxy_client::query_proxy;

/// Options of `underpass why`.
#[derive(Debug, clap::Args)]
#[allow(rustdoc::broken_intra_doc_links)] // --help shows brackets as they stand
pub(crate) struct Args {
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Admin address of the agent, which knows the connections that bypass the proxy.
    #[arg(long, env = "UNDERPASS_AGENT_ADMIN", default_value_t = agent_status::DEFAULT_ADMIN)]
    agent: SocketAddr,
    /// Transport protocol: tcp, udp or sctp [default: tcp, or that in DESTINATION].
    #[arg(long)]
    protocol: Option<TransportProtocol>,
    /// The client pod: NAME, NAMESPACE/NAME or address.
    source: String,
    /// The destination, as TARGET[:PORT[/PROTOCOL]]. TARGET is a pod or service (NAME or
    /// NAMESPACE/NAME), a host name of a service, or an address. PORT is optional for a service
    /// with one port.
    destination: String,
}

/// An explanation, with what the agent knows about the connection.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    response: ExplanationResponse,
    /// Why it bypasses a proxy, although that is not in the explanation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bypasses: Vec<String>,
}

/// Queries the proxy of this node and prints the explanation. The exit code is a failure if all
/// routes are denied.
pub(crate) fn why(args: &Args) -> anyhow::Result<ExitCode> {
    let (target, in_port) = split_protocol(&args.destination);
    let protocol = args.protocol.or(in_port).unwrap_or_default();
    let (destination, port) = split_port(target);
    let (source, destination) = (name(&args.source)?, name(&destination)?);
    let mut path = format!("/why?source={source}&destination={destination}");
    if let Some(port) = port {
        path += &format!("&port={port}");
    }
    if protocol != TransportProtocol::Tcp {
        path += &format!("&protocol={}", protocol.name());
    }
    let response = query_proxy(args.proxy.proxy, &path)?;
    if response.status == StatusCode::NOT_FOUND {
        return Err(failure(&codes::NO_EXPLANATION, response.text()));
    }
    let response: ExplanationResponse = response.decode()?;
    // An agent that does not answer is reported by `underpass status`.
    let bypasses = match node_status(args.agent) {
        Ok(node) if protocol == TransportProtocol::Tcp => {
            bypasses(&node.pods, &response.explanation)
        }
        _ => Vec::new(),
    };
    let answer = Answer { response, bypasses };
    print_as(args.proxy.json, &answer, || render(&answer))?;
    let routes = &answer.response.explanation.routes;
    let is_allowed = routes.iter().any(|route| route.allowed) || !answer.bypasses.is_empty();
    Ok(exit_code(is_allowed))
}

/// Explains which exclusions of this node's pods cover a connection.
fn bypasses(pods: &[PodStatus], explanation: &Explanation) -> Vec<String> {
    let to = explanation.destination;
    let excluded = |pod: &PodStatus, by: Option<String>, what: &str| {
        let PodStatus {
            namespace, name, ..
        } = pod;
        by.map(|by| format!("{namespace}/{name} excludes {by}: {what}"))
    };
    let is_named = |pod: &&PodStatus, name: &str| {
        pod.state != PodState::Skipped && format!("{}/{}", pod.namespace, pod.name) == name
    };
    let source = pods
        .iter()
        .find(|p| is_named(p, &explanation.source.workload));
    let outbound = source.and_then(|pod| {
        let by = pod.exclusions.as_ref()?.of_outbound(to);
        excluded(
            pod,
            by,
            "the connection bypasses its proxy, in plain text and without policies",
        )
    });
    let is_plain = |route: &&ExplainedRoute| route.path == RouteKind::Passthrough;
    let plain = explanation.routes.iter().filter(is_plain);
    let inbound = plain.filter_map(|route| {
        let to: SocketAddr = route.to.as_deref()?.parse().ok()?;
        let pod = pods.iter().find(|pod| pod.ips.contains(&to.ip()))?;
        let from = source.and_then(|pod| {
            let mut ips = pod.ips.iter().copied();
            ips.find(|ip| ip.is_ipv4() == to.is_ipv4())
        });
        let by = pod.exclusions.as_ref()?.of_inbound(from, to.port());
        excluded(
            pod,
            by,
            "plain text reaches it without its proxy and its policies",
        )
    });
    outbound.into_iter().chain(inbound).collect()
}

/// Splits `…:PORT/PROTOCOL`. Names of pods have a slash as well, but before any colon.
fn split_protocol(destination: &str) -> (&str, Option<TransportProtocol>) {
    let split = destination.rsplit_once('/').and_then(|(rest, protocol)| {
        let (_, port) = rest.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        Some((rest, protocol.parse().ok()?))
    });
    split.map_or((destination, None), |(rest, protocol)| {
        (rest, Some(protocol))
    })
}

/// Splits `TARGET[:PORT]`; an IPv6 address with a port is in brackets.
fn split_port(destination: &str) -> (String, Option<u16>) {
    if let Ok(address) = destination.parse::<SocketAddr>() {
        return (address.ip().to_string(), Some(address.port()));
    }
    let bare = destination.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return (bare.to_owned(), None);
    }
    let (host, port) = destination.rsplit_once(':').unwrap_or((destination, ""));
    match port.parse() {
        Ok(port) => (host.to_owned(), Some(port)),
        Err(_) => (destination.to_owned(), None),
    }
}

/// Validates a name or address. Valid ones need no escaping in a query.
fn name(text: &str) -> anyhow::Result<&str> {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._:/".contains(&b);
    if text.is_empty() || !text.bytes().all(is_name) {
        let detail = format!("{text:?} is not a valid name or address");
        return Err(failure(&codes::NO_EXPLANATION, detail));
    }
    Ok(text)
}

fn render(answer: &Answer) -> String {
    let Answer { response, bypasses } = answer;
    let e = &response.explanation;
    let of_service = optional(&e.service, |s| format!(", service {s}"));
    let (from, to) = (party(&e.source), &e.destination);
    let mut text = format!("from  {from}\nto    {to}{of_service}");
    for route in &e.routes {
        text += &format!("\n\n{}", render_route(route));
    }
    for bypass in bypasses {
        text += &format!("\n\nbypass    {bypass}");
    }
    for budget in &response.exhausted_budgets {
        text += &format!("\n\nbudget    {budget}");
    }
    if e.more {
        text += "\n\nThe service has more endpoints; the list is incomplete.";
    }
    text + &format!("\n\nSource: {}", response.from)
}

fn render_route(route: &ExplainedRoute) -> String {
    let path = match route.path {
        RouteKind::Hbone => "HBONE",
        RouteKind::Waypoint => "HBONE to a waypoint",
        RouteKind::Gateway => "HBONE through a network gateway",
        RouteKind::Passthrough => "plain text",
        RouteKind::Uncaptured => "past the proxy",
        RouteKind::Refused => "refused",
    };
    let to = optional(&route.to, |to| format!(" to {to}"));
    let mut lines = vec![format!("path      {path}{to}: {}", route.reason)];
    let mut line = |name: &str, text: String| lines.push(format!("{name:<10}{text}"));
    if let Some(authority) = &route.authority {
        line("tunnel", format!("CONNECT {authority}"));
    }
    if let Some(workload) = &route.workload {
        line("endpoint", party(workload));
    }
    if !route.expected_identities.is_empty() {
        line("identity", route.expected_identities.join(" or "));
    }
    for considered in &route.considered {
        line("", format!("considered: {considered}"));
    }
    match (&route.policy, &route.decided_elsewhere) {
        (Some(policy), _) => {
            line("policy", render_decision(policy));
            for considered in &policy.considered {
                line("", format!("considered: {considered}"));
            }
        }
        (None, Some(elsewhere)) => {
            line(
                "policy",
                format!("not evaluated by this proxy; {elsewhere}"),
            );
        }
        (None, None) => {}
    }
    for change in &route.change {
        line("change", change.clone());
    }
    for onward in &route.onward {
        let then = "\nthen      from the waypoint, unless its rules lead elsewhere:";
        let indented = render_route(onward).replace('\n', "\n  ");
        lines.push(format!("{then}\n  {indented}"));
    }
    lines.join("\n")
}

fn render_decision(policy: &PolicyDecision) -> String {
    let client = match &policy.client_identity {
        Some(identity) => format!("the client is {identity}"),
        None => "the client has no identity".to_owned(),
    };
    let dry_run = optional(&policy.dry_run, |d| format!("; dry run: {d}"));
    let decision = if policy.allowed { "allowed" } else { "denied" };
    format!("{decision}: {}; {client}{dry_run}", policy.reason)
}

/// Renders a part of a line that may be missing.
fn optional<T>(value: &Option<T>, render: impl FnOnce(&T) -> String) -> String {
    value.as_ref().map(render).unwrap_or_default()
}

fn party(party: &Party) -> String {
    let node = match party.node.as_str() {
        "" => String::new(),
        node => format!(" on {node}"),
    };
    let who = if party.in_mesh {
        party.identity.as_str()
    } else {
        "not in the mesh"
    };
    format!("{}{node} ({who})", party.workload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_split_from_destinations() {
        for (text, host, port) in [
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("10.0.0.1", "10.0.0.1", None),
            ("[fd00::1]:80", "fd00::1", Some(80)),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]", "fd00::1", None),
            ("default/server:8080", "default/server", Some(8080)),
            (
                "server.default.svc.cluster.local",
                "server.default.svc.cluster.local",
                None,
            ),
            ("server:x", "server:x", None),
        ] {
            assert_eq!(split_port(text), (host.to_owned(), port), "{text}");
        }
    }

    #[test]
    fn a_protocol_may_follow_the_port() {
        let udp = Some(TransportProtocol::Udp);
        for (text, rest, protocol) in [
            ("server:53/udp", "server:53", udp),
            ("default/server:53/UDP", "default/server:53", udp),
            ("[fd00::1]:53/udp", "[fd00::1]:53", udp),
            ("default/udp", "default/udp", None),
            ("default/server:80", "default/server:80", None),
            ("server:53/quic", "server:53/quic", None),
        ] {
            assert_eq!(split_protocol(text), (rest, protocol), "{text}");
        }
    }

    #[test]
    fn names_that_would_need_escaping_are_rejected() {
        for valid in ["a", "ns/a-b.c", "10.0.0.1", "fd00::1", "a_b"] {
            assert_eq!(name(valid).unwrap(), valid);
        }
        for invalid in ["", "a b", "a&b", "a=b", "a?", "ä", "a%2F"] {
            assert!(name(invalid).is_err(), "{invalid}");
        }
    }

    fn party(workload: &str, node: &str, in_mesh: bool) -> Party {
        Party {
            workload: workload.to_owned(),
            identity: format!("spiffe://td/{workload}"),
            in_mesh,
            node: node.to_owned(),
        }
    }

    fn route(path: RouteKind) -> ExplainedRoute {
        ExplainedRoute {
            path,
            to: None,
            authority: None,
            expected_identities: Vec::new(),
            workload: None,
            reason: "because".to_owned(),
            considered: Vec::new(),
            policy: None,
            decided_elsewhere: None,
            change: Vec::new(),
            onward: Vec::new(),
            allowed: true,
        }
    }

    #[test]
    fn every_fact_of_a_denied_route_has_a_line() {
        let policy = PolicyDecision {
            allowed: false,
            reason: "no rule matches".to_owned(),
            policy: None,
            rule: None,
            considered: vec!["policy ns/a".to_owned()],
            dry_run: Some("ns/b would allow".to_owned()),
            client_identity: Some("spiffe://td/c".to_owned()),
        };
        let denied = ExplainedRoute {
            to: Some("10.0.0.2:15008".to_owned()),
            authority: Some("10.0.0.2:80".to_owned()),
            expected_identities: vec!["spiffe://td/x".to_owned(), "spiffe://td/y".to_owned()],
            workload: Some(party("ns/server", "node-2", true)),
            considered: vec!["no waypoint".to_owned()],
            policy: Some(policy),
            change: vec!["allow spiffe://td/c".to_owned()],
            allowed: false,
            ..route(RouteKind::Hbone)
        };
        assert_eq!(
            render_route(&denied),
            "path      HBONE to 10.0.0.2:15008: because\n\
             tunnel    CONNECT 10.0.0.2:80\n\
             endpoint  ns/server on node-2 (spiffe://td/ns/server)\n\
             identity  spiffe://td/x or spiffe://td/y\n          \
             considered: no waypoint\n\
             policy    denied: no rule matches; the client is spiffe://td/c; \
             dry run: ns/b would allow\n          \
             considered: policy ns/a\n\
             change    allow spiffe://td/c"
        );
    }

    #[test]
    fn every_kind_of_route_has_a_name() {
        for (kind, text) in [
            (RouteKind::Hbone, "HBONE"),
            (RouteKind::Waypoint, "HBONE to a waypoint"),
            (RouteKind::Gateway, "HBONE through a network gateway"),
            (RouteKind::Passthrough, "plain text"),
            (RouteKind::Uncaptured, "past the proxy"),
            (RouteKind::Refused, "refused"),
        ] {
            let expected = format!("path      {text}: because");
            assert_eq!(render_route(&route(kind)), expected);
        }
        let elsewhere = ExplainedRoute {
            decided_elsewhere: Some("the waypoint decides".to_owned()),
            ..route(RouteKind::Waypoint)
        };
        let line = "policy    not evaluated by this proxy; the waypoint decides";
        assert!(render_route(&elsewhere).ends_with(line));
        let through = ExplainedRoute {
            onward: vec![ExplainedRoute {
                workload: Some(party("ns/server", "node-2", true)),
                ..route(RouteKind::Hbone)
            }],
            ..elsewhere
        };
        let onward = "\n\nthen      from the waypoint, unless its rules lead elsewhere:\n  \
                      path      HBONE: because\n  \
                      endpoint  ns/server on node-2 (spiffe://td/ns/server)";
        assert!(render_route(&through).ends_with(&format!("{line}{onward}")));
    }

    #[test]
    fn the_source_of_the_explanation_is_named() {
        let explanation = mesh::explain::Explanation {
            source: party("ns/client", "", false),
            destination: "10.96.0.1:80".parse().unwrap(),
            service: Some("ns/web".to_owned()),
            routes: vec![route(RouteKind::Passthrough)],
            more: true,
        };
        let response = ExplanationResponse {
            from: "the mesh file".to_owned(),
            explanation,
            exhausted_budgets: vec!["ns/client: 10 open connections, limit 10".to_owned()],
        };
        let bypasses = Vec::new();
        assert_eq!(
            render(&Answer { response, bypasses }),
            "from  ns/client (not in the mesh)\nto    10.96.0.1:80, service ns/web\n\n\
             path      plain text: because\n\n\
             budget    ns/client: 10 open connections, limit 10\n\n\
             The service has more endpoints; the list is incomplete.\n\n\
             Source: the mesh file"
        );
    }
}
