//! The steps of the demo. Each performs an action, checks its effect, and returns the evidence.

use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context, bail, ensure};

use super::StepResult;
use super::capture::PacketCapture;
use super::demo_sandbox::{DemoPod, DemoSandbox, LogTail, VIPS, wait_until};
use crate::sandbox::delete_rules;

const NO_POLICY: &str = " []";
/// The policy that istiod generates for PeerAuthentication STRICT: denies clients without an
/// identity.
const STRICT: &str = "
  - name: strict
    namespace: default
    scope: Namespace
    action: Deny
    rules: [[[{ notPrincipals: [Presence] }]]]";
const DENY_CLIENT: &str = "
  - name: no-client
    namespace: default
    scope: Namespace
    action: Deny
    rules: [[[{ principals: [{ Exact: cluster.local/ns/default/sa/client }] }]]]";

type Step = fn(&mut DemoSandbox) -> StepResult;

/// All steps, in order.
pub(crate) fn all() -> Vec<(&'static str, Step)> {
    vec![
        (
            "two nodes, four pods: pods joined the mesh through CNI ADD",
            pods_joined,
        ),
        (
            "client reaches a service on the other node over IPv4 and IPv6",
            request_is_answered,
        ),
        (
            "traffic between the nodes is TLS and does not contain the request",
            wire_is_encrypted,
        ),
        (
            "the server sees the client's IP address",
            source_is_preserved,
        ),
        ("the access log has both identities", log_has_identities),
        (
            "without a policy, outsider (not in the mesh) reaches the server in plain text",
            outsider_allowed,
        ),
        (
            "a STRICT policy denies outsider but not client",
            strict_refuses_outsider,
        ),
        (
            "a DENY policy blocks client and closes its open connections",
            deny_closes_open_connection,
        ),
        (
            "proxy killed: connections fail, nothing leaves in plain text",
            proxy_killed,
        ),
        (
            "proxy restarted: traffic recovers without a CNI call",
            proxy_restarted,
        ),
        (
            "agent killed and nf_tables table deleted: nothing leaves in plain text",
            table_deleted,
        ),
        (
            "ip rules of another pod deleted: no plain text leaves, even from open connections",
            rules_deleted,
        ),
        (
            "agent restarted: it repairs both pods, client and neighbour are served",
            agent_repairs,
        ),
        (
            "nf_tables table deleted again: repaired immediately",
            repaired_at_once,
        ),
    ]
}

fn pods_joined(sandbox: &mut DemoSandbox) -> StepResult {
    let in_state = |state: &str| {
        let pods = sandbox.report().pods.iter();
        let pods = pods.filter(|p| p.state.as_str() == state);
        pods.map(|p| format!("{} on {}", p.name, p.node))
            .collect::<Vec<_>>()
    };
    let (enrolled, skipped) = (in_state("enrolled"), in_state("skipped"));
    ensure!(
        enrolled.len() == 3 && skipped.len() == 1,
        "enrolled: {enrolled:?}, skipped: {skipped:?}"
    );
    let (enrolled, skipped) = (enrolled.join(", "), skipped.join(", "));
    Ok(format!("enrolled: {enrolled}; not in the mesh: {skipped}"))
}

fn request_is_answered(sandbox: &mut DemoSandbox) -> StepResult {
    let client = sandbox.pod("client")?;
    let mut answers = Vec::new();
    for vip in VIPS {
        let answer = client.get(vip, "hello");
        let answer = answer.with_context(|| format!("request to {vip}"))?;
        answers.push(format!("{vip} answers: {answer}"));
    }
    Ok(answers.join("; "))
}

fn wire_is_encrypted(sandbox: &mut DemoSandbox) -> StepResult {
    let client = sandbox.pod("client")?;
    let mut capture = PacketCapture::start(&sandbox.fabric()?)?;
    for vip in VIPS {
        client.get(vip, "a-secret-word")?;
    }
    let traffic = capture.read()?;
    ensure!(traffic.packets > 0, "nothing was captured");
    ensure!(
        !traffic.contains("a-secret-word") && !traffic.contains("server sees"),
        "request or response was on the wire in plain text"
    );
    traffic.expect_tunnels_only()?;
    ensure!(traffic.tls_records > 0, "no TLS record was captured");
    Ok(format!("captured between the nodes: {traffic}"))
}

fn source_is_preserved(sandbox: &mut DemoSandbox) -> StepResult {
    let client = sandbox.pod("client")?;
    let mut seen = Vec::new();
    for vip in VIPS {
        let answer = client.get(vip, "who-am-i")?;
        let is_own = |ip: &IpAddr| answer == format!("server sees {ip}");
        ensure!(
            client.ips.iter().any(is_own),
            "unexpected response: {answer}"
        );
        seen.push(answer);
    }
    Ok(format!("{} (the client's addresses)", seen.join(", ")))
}

fn log_has_identities(sandbox: &mut DemoSandbox) -> StepResult {
    let log = sandbox.proxy_log("node-2")?;
    sandbox.pod("client")?.get(VIPS[0], "x")?;
    let identities = ["/sa/client\"", "/sa/server\"", "direction=\"inbound\""];
    let line = log.line(&identities)?;
    let fields = line
        .split_whitespace()
        .filter(|f| f.starts_with("src.identity") || f.starts_with("dst.identity"));
    Ok(fields.collect::<Vec<_>>().join(" "))
}

fn outsider_allowed(sandbox: &mut DemoSandbox) -> StepResult {
    let (outsider, server) = (sandbox.pod("outsider")?, sandbox.pod("server")?);
    let mut capture = PacketCapture::start(&sandbox.fabric()?)?;
    let mut answers = Vec::new();
    for ip in &server.ips {
        answers.push(outsider.get(*ip, "in-the-open")?);
    }
    let traffic = capture.read()?;
    ensure!(
        traffic.contains("in-the-open"),
        "the request was not captured in plain text: {traffic}"
    );
    let answers = answers.join(", ");
    Ok(format!(
        "{answers}; the request is readable on the wire, as expected"
    ))
}

fn strict_refuses_outsider(sandbox: &mut DemoSandbox) -> StepResult {
    let (outsider, server) = (sandbox.pod("outsider")?, sandbox.pod("server")?);
    let client = sandbox.pod("client")?;
    let log = sandbox.proxy_log("node-2")?;
    sandbox.set_policies(STRICT)?;
    for ip in &server.ips {
        outsider.await_failure("outsider is denied", *ip)?;
    }
    for vip in VIPS {
        client.get(vip, "x").context("client is no longer served")?;
    }
    let line = log.line(&["src.workload=\"outsider\"", "error="])?;
    sandbox.set_policies(NO_POLICY)?;
    Ok(format!("client is served; outsider: {}", error_of(&line)))
}

fn deny_closes_open_connection(sandbox: &mut DemoSandbox) -> StepResult {
    let (client, neighbour) = (sandbox.pod("client")?, sandbox.pod("neighbour")?);
    let mut open = Vec::new();
    for vip in VIPS {
        let mut connection = wait_until("client can connect", || Ok(client.connect(vip).ok()))?;
        let answer = connection.get("before");
        answer.context("request before the policy")?;
        open.push(connection);
    }
    let log = sandbox.proxy_log("node-2")?;
    sandbox.set_policies(DENY_CLIENT)?;
    for connection in &mut open {
        wait_until("the open connection is closed", || {
            Ok(connection.get("after").err())
        })?;
    }
    for vip in VIPS {
        client.await_failure("a new connection is denied", vip)?;
        let answer = neighbour.get(vip, "x");
        answer.context("neighbour is no longer served")?;
    }
    let line = log.line(&["policy change"])?;
    sandbox.set_policies(NO_POLICY)?;
    let error = error_of(&line);
    Ok(format!(
        "both open connections closed: {error}; neighbour is served"
    ))
}

fn proxy_killed(sandbox: &mut DemoSandbox) -> StepResult {
    let (client, server) = (sandbox.pod("client")?, sandbox.pod("server")?);
    client.await_answer("client is served again", VIPS[0], "x")?;
    sandbox.kill_proxy("node-1")?;
    let mut capture = PacketCapture::start(&sandbox.fabric()?)?;
    let outcome = expect_all_fail(&client, server.ips.iter().copied().chain(VIPS))?;
    expect_no_plaintext(&mut capture)?;
    Ok(format!("{outcome}; no request data was captured"))
}

fn proxy_restarted(sandbox: &mut DemoSandbox) -> StepResult {
    let client = sandbox.pod("client")?;
    sandbox.repair()?;
    let mut answers = Vec::new();
    for vip in VIPS {
        answers.push(client.await_answer("client is served again", vip, "x")?);
    }
    Ok(answers.join(", "))
}

fn table_deleted(sandbox: &mut DemoSandbox) -> StepResult {
    let (client, server) = (sandbox.pod("client")?, sandbox.pod("server")?);
    sandbox.kill_agent("node-1")?;
    let mut capture = PacketCapture::start(&sandbox.fabric()?)?;
    client.netns.run(delete_rules::table)??;
    let outcome = expect_all_fail(&client, server.ips)?;
    expect_no_plaintext(&mut capture)?;
    Ok(format!("{outcome}; no request data was captured"))
}

fn rules_deleted(sandbox: &mut DemoSandbox) -> StepResult {
    let (neighbour, server) = (sandbox.pod("neighbour")?, sandbox.pod("server")?);
    let open = neighbour.connect(server.ips[0]);
    let mut open = open.context("connection before the deletion")?;
    open.get("before").context("request before the deletion")?;
    let mut capture = PacketCapture::start(&sandbox.fabric()?)?;
    delete_rules::ip_rules(&neighbour.netns)?;
    let outcome = expect_all_fail(&neighbour, server.ips)?;
    ensure!(
        open.get("a-secret-word").is_err(),
        "the open connection got a response"
    );
    expect_no_plaintext(&mut capture)?;
    let open = "open connection: blocked; no request data was captured";
    Ok(format!("{outcome}; {open}"))
}

fn agent_repairs(sandbox: &mut DemoSandbox) -> StepResult {
    let log = sandbox.agent_log("node-1")?;
    sandbox.repair()?;
    let mut seen = Vec::new();
    for name in ["client", "neighbour"] {
        let repair = wait_for_repair(sandbox, &log, name)?;
        let pod = sandbox.pod(name)?;
        let answer = pod.await_answer("the pod is served", VIPS[0], "x")?;
        seen.push(format!("{repair}; {answer}"));
    }
    Ok(seen.join("\n"))
}

fn repaired_at_once(sandbox: &mut DemoSandbox) -> StepResult {
    let (client, server) = (sandbox.pod("client")?, sandbox.pod("server")?);
    let log = sandbox.agent_log("node-1")?;
    let mut capture = PacketCapture::start(&sandbox.fabric()?)?;
    client.netns.run(delete_rules::table)??;
    for ip in server.ips {
        let answer = client.await_answer("client is served", ip, "a-secret-word")?;
        ensure!(answer.starts_with("server sees"), "{ip} answers: {answer}");
    }
    expect_no_plaintext(&mut capture)?;
    let repair = wait_for_repair(sandbox, &log, "client")?;
    Ok(format!("{repair}; no request data was captured"))
}

/// Waits until the agent of node-1 logs the repair of a pod, and describes the repair.
fn wait_for_repair(sandbox: &DemoSandbox, log: &LogTail, pod: &str) -> anyhow::Result<String> {
    let line = log.line(&["by=", "lasted=", &format!("name=\"{pod}\"")])?;
    let lasted = line.split_once("lasted=").map(|(_, rest)| rest);
    let lasted = lasted.and_then(|rest| rest.split_whitespace().next());
    let what = sandbox.last_repair("node-1", pod)?;
    Ok(format!("repaired in {}: {what}", lasted.unwrap_or("?")))
}

/// Sends a request to every address; each must fail.
fn expect_all_fail(from: &DemoPod, to: impl IntoIterator<Item = IpAddr>) -> anyhow::Result<String> {
    let mut outcomes = Vec::new();
    for ip in to {
        let outcome = match from.get(ip, "a-secret-word").map_err(|e| (e.kind(), e)) {
            // Over IPv6 without the table, the packet comes back over lo and reaches the pod's own
            // listener.
            Ok(answer) if answer.starts_with(&format!("{} sees", from.name)) => {
                "reached the pod's own listener, did not leave the pod".to_owned()
            }
            Ok(answer) => bail!("a request to {ip} got a response: {answer}"),
            Err((ErrorKind::ConnectionRefused, _)) => "refused".to_owned(),
            Err((ErrorKind::TimedOut | ErrorKind::WouldBlock, _)) => "no response".to_owned(),
            Err((_, e)) => e.to_string(),
        };
        outcomes.push(format!("{ip}: {outcome}"));
    }
    Ok(outcomes.join(", "))
}

fn expect_no_plaintext(capture: &mut PacketCapture) -> anyhow::Result<()> {
    let traffic = capture.read()?;
    ensure!(
        !traffic.contains("a-secret-word"),
        "the request was on the wire in plain text: {traffic}"
    );
    traffic.expect_tunnels_only()
}

fn error_of(line: &str) -> &str {
    line.split_once("error=")
        .map_or(line, |(_, error)| error.trim_matches('"'))
}
