//! `underpass why`: where a connection would go, whether it would be let in, and what would have to change.

use std::net::SocketAddr;
use std::process::ExitCode;

use error_code::cli as codes;
use http::StatusCode;
use mesh::explain::{Answered, Judgement, Party, Path, Way};

use crate::ask::read;
use crate::failure::failure;
use crate::proxy::Asked;
use crate::proxy_of_node::ask_proxy;

/// Asks the proxy of this node. Fails when the connection would be refused on every way.
pub(crate) fn why(asked: &Asked, source: &str, destination: &str) -> anyhow::Result<ExitCode> {
    let (destination, port) = split(destination);
    let mut path = format!("/why?source={}&destination={}", name(source)?, name(&destination)?);
    if let Some(port) = port {
        path += &format!("&port={port}");
    }
    let (status, body) = ask_proxy(asked.proxy, &path)?;
    if status == StatusCode::NOT_FOUND {
        return Err(failure(&codes::NO_SUCH_PARTY, String::from_utf8_lossy(&body).trim()));
    }
    let answered: Answered = read(status, &body)?;
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&answered)?);
    } else {
        println!("{}", told(&answered));
    }
    let through = answered.explanation.ways.iter().any(|way| way.allowed);
    Ok(if through { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// DESTINATION or DESTINATION:PORT; an IPv6 address with a port stands in brackets.
fn split(destination: &str) -> (String, Option<u16>) {
    if let Ok(address) = destination.parse::<SocketAddr>() {
        return (address.ip().to_string(), Some(address.port()));
    }
    let bare = destination.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return (bare.to_owned(), None);
    }
    match destination.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) => (host.to_owned(), Some(port)),
        None => (destination.to_owned(), None),
    }
}

/// Anything else in a query would have to be escaped, and is nobody's name.
fn name(text: &str) -> anyhow::Result<&str> {
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._:/".contains(&b);
    match !text.is_empty() && text.bytes().all(is_name) {
        true => Ok(text),
        false => Err(failure(&codes::NO_SUCH_PARTY, format!("{text:?} is no name and no address"))),
    }
}

fn told(answered: &Answered) -> String {
    let e = &answered.explanation;
    let of_service = e.service.as_ref().map_or_else(String::new, |s| format!(", service {s}"));
    let mut text = format!("from  {}\nto    {}{of_service}", party(&e.source), e.destination);
    for way in &e.ways {
        text += &format!("\n\n{}", told_way(way));
    }
    if e.more {
        text += "\n\nThe service has more endpoints; these are not all.";
    }
    text + &format!("\n\nAsked: {}", answered.from)
}

fn told_way(way: &Way) -> String {
    let path = match way.path {
        Path::Hbone => "HBONE",
        Path::Waypoint => "HBONE to a waypoint",
        Path::Gateway => "HBONE through a network gateway",
        Path::Passthrough => "plain text",
        Path::Refused => "nowhere",
    };
    let to = way.to.as_ref().map_or_else(String::new, |to| format!(" to {to}"));
    let mut lines = vec![format!("path      {path}{to}: {}", way.reason)];
    let mut line = |name: &str, text: String| lines.push(format!("{name:<10}{text}"));
    if let Some(authority) = &way.authority {
        line("inside", format!("CONNECT {authority}"));
    }
    if let Some(workload) = &way.workload {
        line("arrives", party(workload));
    }
    if !way.expected_identities.is_empty() {
        line("must be", way.expected_identities.join(" or "));
    }
    for considered in &way.considered {
        line("", format!("considered: {considered}"));
    }
    match (&way.policy, &way.decided_elsewhere) {
        (Some(policy), _) => {
            line("policy", verdict(policy));
            for considered in &policy.considered {
                line("", format!("considered: {considered}"));
            }
        }
        (None, Some(elsewhere)) => line("policy", format!("not asked here; {elsewhere}")),
        (None, None) => {}
    }
    for change in &way.change {
        line("change", change.clone());
    }
    lines.join("\n")
}

fn verdict(policy: &Judgement) -> String {
    let as_whom = match &policy.client_identity {
        Some(identity) => format!("the client is {identity}"),
        None => "the client proves no identity".to_owned(),
    };
    let dry_run = policy.dry_run.as_ref().map_or_else(String::new, |d| format!("; dry run: {d}"));
    format!("{}: {}; {as_whom}{dry_run}", if policy.allowed { "allowed" } else { "denied" }, policy.reason)
}

fn party(party: &Party) -> String {
    let node = if party.node.is_empty() { String::new() } else { format!(" on {}", party.node) };
    let who = if party.in_mesh { party.identity.clone() } else { "not in the mesh".to_owned() };
    format!("{}{node} ({who})", party.workload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_split() {
        for (text, host, port) in [
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("10.0.0.1", "10.0.0.1", None),
            ("[fd00::1]:80", "fd00::1", Some(80)),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]", "fd00::1", None),
            ("default/server:8080", "default/server", Some(8080)),
            ("server.default.svc.cluster.local", "server.default.svc.cluster.local", None),
            ("server:x", "server:x", None),
        ] {
            assert_eq!(split(text), (host.to_owned(), port), "{text}");
        }
    }
}
