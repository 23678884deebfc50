//! The story. Each step does something, looks at what came of it, and says what it saw.

use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context, bail, ensure};

use super::Observed;
use super::capture::{Capture, Traffic};
use super::scene::{Actor, Scene, until};
use super::web::{Connection, get};
use crate::sandbox::delete_rules;

const VIPS: [&str; 2] = ["10.96.0.10", "fd96::10"];
const APP_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;

const NO_POLICY: &str = " []";
/// What istiod makes of PeerAuthentication STRICT: whoever has no identity is denied.
const STRICT: &str = "\n  - { name: strict, namespace: default, scope: Namespace, action: Deny, rules: [[[{ notPrincipals: [Presence] }]]] }";
const DENY_CLIENT: &str = "\n  - name: no-client\n    namespace: default\n    scope: Namespace\n    action: Deny\n    rules: [[[{ principals: [{ Exact: cluster.local/ns/default/sa/client }] }]]]";

type Step = fn(&mut Scene) -> Observed;

/// All steps, in order.
pub(crate) fn all() -> Vec<(&'static str, Step)> {
    vec![
        ("two nodes, four pods; the pods joined through a real CNI ADD", pods_joined),
        ("client calls the service on another node, over IPv4 and IPv6", request_is_answered),
        ("the bytes between the nodes are TLS and hold none of the request", wire_is_encrypted),
        ("the server sees the client's own address", source_is_preserved),
        ("the access log names both identities", log_names_both),
        ("outsider, not in the mesh, reaches the server in plain text while that is allowed", outsider_allowed),
        ("under a STRICT policy outsider is refused, and client is not", strict_refuses_outsider),
        ("a deny policy cuts client off, also its open connection", deny_cuts_open_connection),
        ("the proxy is killed: connections are refused, nothing leaks in plain text", proxy_killed),
        ("the proxy is started again: it works, and no CNI call was made", proxy_restarted),
        (
            "the agent is away and the nf_tables table is deleted behind our back: nothing leaves in plain text",
            table_deleted,
        ),
        (
            "then the ip rules of another pod: nothing leaves in plain text, not from an open connection either",
            rules_deleted,
        ),
        ("the agent comes back, finds both and puts them right: client and neighbour are served", agent_repairs),
        ("the table is deleted once more: it is put right at once", repaired_at_once),
    ]
}

fn vips() -> impl Iterator<Item = IpAddr> {
    VIPS.iter().filter_map(|v| v.parse().ok())
}

fn pods_joined(scene: &mut Scene) -> Observed {
    let of = |state: &str| {
        let pods = scene.report().pods.iter().filter(|p| p.state.as_str() == state);
        pods.map(|p| format!("{} on {}", p.name, p.node)).collect::<Vec<_>>()
    };
    let (enrolled, skipped) = (of("enrolled"), of("skipped"));
    ensure!(enrolled.len() == 3 && skipped.len() == 1, "enrolled: {enrolled:?}, skipped: {skipped:?}");
    Ok(format!("enrolled: {}; left alone: {}", enrolled.join(", "), skipped.join(", ")))
}

fn request_is_answered(scene: &mut Scene) -> Observed {
    let client = scene.actor("client")?;
    let mut answers = Vec::new();
    for vip in vips() {
        let answer = get(&client.netns, vip, SERVICE_PORT, "hello").with_context(|| format!("request to {vip}"))?;
        answers.push(format!("{vip} answers: {answer}"));
    }
    Ok(answers.join("; "))
}

fn wire_is_encrypted(scene: &mut Scene) -> Observed {
    let client = scene.actor("client")?;
    let mut capture = Capture::begin(&scene.fabric()?)?;
    for vip in vips() {
        get(&client.netns, vip, SERVICE_PORT, "a-secret-word")?;
    }
    let seen = capture.take()?;
    ensure!(seen.packets > 0, "nothing was captured");
    ensure!(
        !seen.holds("a-secret-word") && !seen.holds("server sees"),
        "request or answer was on the wire in plain text"
    );
    ensure!(seen.plain_packets == 0, "{} packets with data were not of a tunnel", seen.plain_packets);
    ensure!(seen.tls_records > 0, "no TLS record was seen");
    Ok(format!("captured on the fabric: {}", told(&seen)))
}

fn source_is_preserved(scene: &mut Scene) -> Observed {
    let client = scene.actor("client")?;
    let mut seen = Vec::new();
    for vip in vips() {
        let answer = get(&client.netns, vip, SERVICE_PORT, "who-am-i")?;
        ensure!(client.ips.iter().any(|ip| answer == format!("server sees {ip}")), "the server says: {answer}");
        seen.push(answer);
    }
    Ok(format!("{}; these are the client's addresses", seen.join(", ")))
}

fn log_names_both(scene: &mut Scene) -> Observed {
    let from = scene.proxy_log("node-2")?.len();
    let client = scene.actor("client")?;
    get(&client.netns, vips().next().context("no vip")?, SERVICE_PORT, "x")?;
    let identities = ["/sa/client\"", "/sa/server\"", "direction=\"inbound\""];
    let line = scene.log_line("node-2", from, &identities)?;
    let fields = line.split_whitespace().filter(|f| f.starts_with("src.identity") || f.starts_with("dst.identity"));
    Ok(fields.collect::<Vec<_>>().join(" "))
}

fn outsider_allowed(scene: &mut Scene) -> Observed {
    let (outsider, server) = (scene.actor("outsider")?, scene.actor("server")?);
    let mut capture = Capture::begin(&scene.fabric()?)?;
    let mut answers = Vec::new();
    for ip in &server.ips {
        answers.push(get(&outsider.netns, *ip, APP_PORT, "in-the-open")?);
    }
    let seen = capture.take()?;
    ensure!(seen.holds("in-the-open"), "the request was not seen in plain text: {}", told(&seen));
    Ok(format!("{}; on the wire the request is readable, as expected", answers.join(", ")))
}

fn strict_refuses_outsider(scene: &mut Scene) -> Observed {
    let (outsider, server, client) = (scene.actor("outsider")?, scene.actor("server")?, scene.actor("client")?);
    let from = scene.proxy_log("node-2")?.len();
    scene.set_policies(STRICT)?;
    for ip in &server.ips {
        until("outsider is refused", || Ok(get(&outsider.netns, *ip, APP_PORT, "x").err()))?;
    }
    for vip in vips() {
        get(&client.netns, vip, SERVICE_PORT, "x").context("client must still be served")?;
    }
    let line = scene.log_line("node-2", from, &["src.workload=\"outsider\"", "error="])?;
    scene.set_policies(NO_POLICY)?;
    Ok(format!("client is answered; outsider: {}", error_of(&line)))
}

fn deny_cuts_open_connection(scene: &mut Scene) -> Observed {
    let (client, neighbour) = (scene.actor("client")?, scene.actor("neighbour")?);
    let mut open = Vec::new();
    for vip in vips() {
        let mut connection =
            until("client may connect", || Ok(Connection::open(&client.netns, vip, SERVICE_PORT).ok()))?;
        connection.get("before").context("before the policy")?;
        open.push(connection);
    }
    let from = scene.proxy_log("node-2")?.len();
    scene.set_policies(DENY_CLIENT)?;
    for connection in &mut open {
        until("the open connection is cut", || Ok(connection.get("after").err()))?;
    }
    for vip in vips() {
        until("a new connection is refused", || Ok(get(&client.netns, vip, SERVICE_PORT, "x").err()))?;
        get(&neighbour.netns, vip, SERVICE_PORT, "x").context("neighbour must still be served")?;
    }
    let line = scene.log_line("node-2", from, &["policy change"])?;
    scene.set_policies(NO_POLICY)?;
    Ok(format!("both open connections ended: {}; neighbour is answered", error_of(&line)))
}

fn proxy_killed(scene: &mut Scene) -> Observed {
    let (client, server) = (scene.actor("client")?, scene.actor("server")?);
    until("client is served again", || {
        Ok(get(&client.netns, vips().next().context("no vip")?, SERVICE_PORT, "x").ok())
    })?;
    scene.kill_proxy("node-1")?;
    let mut capture = Capture::begin(&scene.fabric()?)?;
    let refused = all_fail(&client, server.ips.iter().copied().chain(vips()))?;
    nothing_in_plain(&mut capture)?;
    Ok(format!("{refused}; captured meanwhile: no byte of a request"))
}

fn proxy_restarted(scene: &mut Scene) -> Observed {
    let client = scene.actor("client")?;
    scene.repair()?;
    let mut answers = Vec::new();
    for vip in vips() {
        answers.push(until("client is served again", || Ok(get(&client.netns, vip, SERVICE_PORT, "x").ok()))?);
    }
    Ok(answers.join(", "))
}

fn table_deleted(scene: &mut Scene) -> Observed {
    let (client, server) = (scene.actor("client")?, scene.actor("server")?);
    scene.kill_agent("node-1")?;
    let mut capture = Capture::begin(&scene.fabric()?)?;
    client.netns.run(delete_rules::table)??;
    let outcome = all_fail(&client, server.ips.iter().copied())?;
    nothing_in_plain(&mut capture)?;
    Ok(format!("{outcome}; captured meanwhile: no byte of a request"))
}

fn rules_deleted(scene: &mut Scene) -> Observed {
    let (neighbour, server) = (scene.actor("neighbour")?, scene.actor("server")?);
    let mut open = Connection::open(&neighbour.netns, server.ips[0], APP_PORT).context("neighbour connects before")?;
    open.get("before").context("neighbour is served before")?;
    let mut capture = Capture::begin(&scene.fabric()?)?;
    delete_rules::ip_rules(&neighbour.netns)?;
    let outcome = all_fail(&neighbour, server.ips.iter().copied())?;
    ensure!(open.get("a-secret-word").is_err(), "the open connection was answered");
    nothing_in_plain(&mut capture)?;
    Ok(format!("{outcome}; a connection that was open: held back; captured meanwhile: no byte of a request"))
}

fn agent_repairs(scene: &mut Scene) -> Observed {
    let from = scene.agent_log("node-1")?.len();
    scene.repair()?;
    let mut seen = Vec::new();
    for name in ["client", "neighbour"] {
        let line = scene.agent_line("node-1", from, &["repaired", &format!("default/{name}")])?;
        let actor = scene.actor(name)?;
        let vip = vips().next().context("no vip")?;
        let answer = until("it is served", || Ok(get(&actor.netns, vip, SERVICE_PORT, "x").ok()))?;
        seen.push(format!("{}; {answer}", repair_of(&line)));
    }
    Ok(seen.join("\n"))
}

fn repaired_at_once(scene: &mut Scene) -> Observed {
    let (client, server) = (scene.actor("client")?, scene.actor("server")?);
    let from = scene.agent_log("node-1")?.len();
    let mut capture = Capture::begin(&scene.fabric()?)?;
    client.netns.run(delete_rules::table)??;
    for ip in &server.ips {
        let answer = until("client is served", || Ok(get(&client.netns, *ip, APP_PORT, "a-secret-word").ok()))?;
        ensure!(answer.starts_with("server sees"), "{ip} answers: {answer}");
    }
    nothing_in_plain(&mut capture)?;
    let line = scene.agent_line("node-1", from, &["repaired"])?;
    Ok(format!("{}; captured meanwhile: no byte of a request", repair_of(&line)))
}

/// What a line of the agent's log says of a repair.
fn repair_of(line: &str) -> String {
    let what = line.split_once("redirection (").and_then(|(_, rest)| rest.split_once("):"));
    let lasted = line.split_once("lasted=").and_then(|(_, rest)| rest.split_whitespace().next());
    format!("repaired in {}: {}", lasted.unwrap_or("?"), what.map_or(line, |(what, _)| what))
}

/// Every address is tried; each attempt must fail.
fn all_fail(from: &Actor, to: impl Iterator<Item = IpAddr>) -> anyhow::Result<String> {
    let mut outcomes = Vec::new();
    for ip in to {
        let port = if VIPS.contains(&ip.to_string().as_str()) { SERVICE_PORT } else { APP_PORT };
        match get(&from.netns, ip, port, "a-secret-word") {
            // Known of IPv6 without the table: the packet comes back over lo and meets an own listener of the pod.
            Ok(answer) if answer.starts_with(&format!("{} sees", from.name)) => {
                outcomes.push(format!("{ip}: came back to the pod's own listener, never left the pod"));
            }
            Ok(answer) => bail!("a request to {ip} was answered: {answer}"),
            Err(e) => {
                let how = match e.kind() {
                    ErrorKind::ConnectionRefused => "refused".to_owned(),
                    ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer".to_owned(),
                    _ => e.to_string(),
                };
                outcomes.push(format!("{ip}: {how}"));
            }
        }
    }
    Ok(outcomes.join(", "))
}

fn nothing_in_plain(capture: &mut Capture) -> anyhow::Result<()> {
    let seen = capture.take()?;
    ensure!(!seen.holds("a-secret-word"), "the request was on the wire in plain text: {}", told(&seen));
    ensure!(seen.plain_packets == 0, "{} packets with data were not of a tunnel", seen.plain_packets);
    Ok(())
}

fn told(seen: &Traffic) -> String {
    format!(
        "{} TCP packets, {} bytes of data, {} of them begin with a TLS record, {} outside a tunnel",
        seen.packets, seen.bytes, seen.tls_records, seen.plain_packets
    )
}

fn error_of(line: &str) -> &str {
    line.split_once("error=").map_or(line, |(_, error)| error.trim_matches('"'))
}
