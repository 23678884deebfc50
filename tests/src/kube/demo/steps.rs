//! The steps. Each returns what it observed, and panics when that is not what it expects.

use std::time::Instant;

use serde_json::{Value, json};

use super::{DemoState, waypoint};
use crate::cluster::istiod::NAMESPACE;
use crate::kube::app::App;
use crate::kube::underpass::{AGENTS, PROXIES};
use crate::kube::until;
use crate::sniffer::Counter;

/// The namespace of the demo.
pub(super) const SHOP: &str = "shop";
/// A header that every request of the application has.
const READABLE: &str = "Host: app";

type Step = fn(&mut DemoState<'_>) -> String;

/// All steps in order.
pub const ALL: [(&str, Step); 15] = [
    ("pods on two nodes communicate without Underpass", plain),
    ("helm installs agent and proxy on both nodes", install),
    (
        "the namespace is labelled: both running pods join, and an open connection continues",
        label,
    ),
    ("a new pod is in the mesh when it starts", created),
    (
        "between the nodes there is only TLS, and both identities are logged",
        encrypted,
    ),
    ("istioctl shows the proxies", istioctl),
    (
        "STRICT: a pod outside the mesh is refused, and the kubelet's probes pass",
        strict,
    ),
    (
        "an AuthorizationPolicy denies: the open connection is closed, and `why` gives the reason",
        denied,
    ),
    (
        "a waypoint denies a path and routes by header, and `why` shows the whole path",
        waypoint::behind_a_waypoint,
    ),
    (
        "an ingress gateway reaches the pod by HBONE, with its own identity",
        waypoint::behind_a_gateway,
    ),
    (
        "the proxy is killed: nothing leaves in plain text, and the next one serves the same pods",
        killed,
    ),
    (
        "the agents are restarted while pods start: every pod is in the mesh",
        rolled,
    ),
    (
        "the rules of a pod are deleted: they are repaired at once",
        repaired,
    ),
    (
        "the label is removed: pods leave, and an open connection continues",
        unlabelled,
    ),
    (
        "helm uninstalls, and nothing is left on the nodes",
        uninstalled,
    ),
];

fn app<'a>(name: &'a str, node: &'static str) -> App<'a> {
    App {
        namespace: SHOP,
        name,
        node: Some(node),
        labels: Value::Null,
    }
}

fn plain(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    kube.namespace(SHOP, false);
    kube.launch(&[app("client", "node-1"), app("server", "node-2")]);
    state.service = kube.service_of_families(SHOP, "server");
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    let responses = state.ask("client");
    let seen = counter.stop();
    assert!(seen.readable > 0 && seen.tunnel == 0, "{seen:?}");
    format!("{responses}readable on the wire: {} frames", seen.readable)
}

fn install(state: &mut DemoState<'_>) -> String {
    let started = Instant::now();
    state.kube.import_underpass();
    let imported = started.elapsed();
    state.kube.install_underpass(&[]);
    let ready = started.elapsed() - imported;
    let pods = release_pods(state);
    assert_eq!(pods.len(), 4, "{pods:?}");
    format!(
        "ready after {:.1} s\n{}",
        ready.as_secs_f64(),
        pods.join("\n")
    )
}

/// Name, ready containers and state of each agent and proxy. Pods of an earlier release may still
/// be terminating; they are left out.
fn release_pods(state: &DemoState<'_>) -> Vec<String> {
    let pods = state
        .kube
        .kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "wide", "--no-headers"]);
    pods.lines()
        .filter(|l| l.contains(AGENTS) || l.contains(PROXIES))
        .filter(|l| !l.contains("Terminating"))
        .map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        .collect()
}

fn label(state: &mut DemoState<'_>) -> String {
    let requests = state
        .kube
        .request_on_one_connection(SHOP, "client", &state.service[0]);
    let started = Instant::now();
    state.kube.namespace(SHOP, true);
    for pod in ["client", "server"] {
        state.kube.await_enrolled(SHOP, pod, true);
    }
    let took = started.elapsed();
    let answers = requests.await_answers();
    format!(
        "both verified and announced after {:.2} s; {answers} responses on the open connection",
        took.as_secs_f64()
    )
}

fn created(state: &mut DemoState<'_>) -> String {
    state.kube.launch(&[app("newcomer", "node-1")]);
    state.kube.await_enrolled(SHOP, "newcomer", true);
    let (_, status) = state.kube.underpass("node-1", &["status", "--all"]);
    let line = status
        .lines()
        .find(|l| l.contains("newcomer"))
        .unwrap_or_else(|| panic!("the pod is not listed: {status}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn encrypted(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    state.await_tunnels();
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    let responses = state.ask("client");
    let seen = counter.stop();
    assert!(seen.readable == 0 && seen.tls > 0, "{seen:?}");
    let identity = |of: &str| format!("spiffe://cluster.local/ns/{SHOP}/sa/{of}");
    let log = kube.proxy_log("node-2");
    let both = |l: &&str| {
        [identity("client"), identity("server")]
            .iter()
            .all(|id| l.contains(id.as_str()))
    };
    let line = log
        .lines()
        .rfind(both)
        .unwrap_or_else(|| panic!("no access log line has both identities:\n{log}"));
    format!(
        "{responses}{} tunnel segments, {} begin with a TLS record, none is readable\n{line}",
        seen.tunnel, seen.tls
    )
}

fn istioctl(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    let workloads = kube.run(
        "istioctl",
        &["ztunnel-config", "workloads", "--node", "node-1"],
    );
    let line = workloads
        .lines()
        .find(|l| l.contains(SHOP) && l.contains("server") && l.contains("HBONE"));
    let line = line.unwrap_or_else(|| panic!("the server is not listed with HBONE: {workloads}"));
    let certificates = kube.run(
        "istioctl",
        &["ztunnel-config", "certificates", "--node", "node-1"],
    );
    assert!(
        certificates.contains(&format!("ns/{SHOP}/sa/client")),
        "{certificates}"
    );
    let proxies = kube.run("istioctl", &["proxy-status"]);
    // A proxy that is terminating stays connected, and listed, while it drains.
    let connected = |pod: &String| {
        pod.split(' ')
            .next()
            .is_some_and(|name| proxies.contains(name))
    };
    let running = release_pods(state);
    let running = running.iter().filter(|pod| pod.starts_with(PROXIES));
    assert_eq!(running.filter(|pod| connected(pod)).count(), 2, "{proxies}");
    format!("{line}\n{}", proxies.trim_end())
}

fn strict(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    kube.namespace("outside", false);
    kube.launch(&[App {
        namespace: "outside",
        name: "outsider",
        node: Some("node-1"),
        labels: Value::Null,
    }]);
    let before = kube.await_answer("outside", "outsider", &[&state.service[0]]);
    kube.apply(&policy(
        "PeerAuthentication",
        "strict",
        &json!({ "mtls": { "mode": "STRICT" } }),
    ));
    let refused = until("the outsider is refused", || {
        let (answered, responses) = kube.ask("outside", "outsider", &[&state.service[0]]);
        (!answered).then_some(responses)
    });
    let responses = state.ask("client");
    // Probes are sent every second: wait for two more.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    kube.await_pod(SHOP, "server");
    let log = kube.proxy_log("node-2");
    let why = log
        .lines()
        .rfind(|l| l.contains("outside") && l.contains("UP-PROXY"))
        .unwrap_or_default();
    format!("before: {before}then: {refused}client: {responses}server is ready\n{why}")
}

fn denied(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    let requests = kube.request_on_one_connection(SHOP, "client", state.service.last().unwrap());
    let principals = [format!("cluster.local/ns/{SHOP}/sa/client")];
    let rules = json!([{ "from": [{ "source": { "principals": principals } }] }]);
    let spec = json!({
        "selector": { "matchLabels": { "app": "server" } },
        "action": "DENY",
        "rules": rules,
    });
    kube.apply(&policy("AuthorizationPolicy", "no-client", &spec));
    let failure = requests.await_end();
    let newcomer = state.ask("newcomer");
    let (_, why) = kube.underpass(
        "node-1",
        &[
            "why",
            &format!("{SHOP}/client"),
            &format!("{SHOP}/server:80"),
        ],
    );
    kube.kubectl(&["delete", "-n", SHOP, "authorizationpolicy/no-client"]);
    format!("{failure}\nnewcomer: {newcomer}{}", why.trim_end())
}

fn killed(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    state.ask("client");
    let proxy = until("a proxy is ready", || kube.ready_pod_of(PROXIES, "node-1"));
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    kube.kubectl(&[
        "delete",
        "pod",
        "-n",
        NAMESPACE,
        &proxy,
        "--grace-period=0",
        "--force",
    ]);
    let (mut refused, started) = (0, Instant::now());
    until("the next proxy serves", || {
        let (answered, _) = kube.ask(SHOP, "client", &[&state.service[0]]);
        let next = kube
            .ready_pod_of(PROXIES, "node-1")
            .is_some_and(|p| p != proxy);
        refused += usize::from(!answered);
        (answered && next).then_some(())
    });
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    format!(
        "served again after {:.1} s; {refused} requests refused, none readable on the wire",
        started.elapsed().as_secs_f64()
    )
}

fn rolled(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    kube.kubectl(&[
        "rollout",
        "restart",
        "-n",
        NAMESPACE,
        &format!("daemonset/{AGENTS}"),
    ]);
    let names: Vec<_> = (0..6).map(|n| format!("during-{n}")).collect();
    let apps: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| app(name, if n % 2 == 0 { "node-1" } else { "node-2" }))
        .collect();
    kube.launch(&apps);
    kube.await_rollout(AGENTS);
    names
        .iter()
        .for_each(|name| kube.await_enrolled(SHOP, name, true));
    let answered = names
        .iter()
        .map(|name| state.ask(name).lines().count())
        .sum::<usize>();
    format!(
        "{} pods started meanwhile, and {answered} of their requests were answered",
        names.len()
    )
}

fn repaired(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    let node = kube.node("node-1");
    let pid = kube.process_of(SHOP, "client");
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    node.run(
        "nsenter",
        &[
            "--target",
            &pid.to_string(),
            "--net",
            "nft",
            "delete",
            "table",
            "inet",
            "underpass",
        ],
    );
    let started = Instant::now();
    until("the table is restored", || {
        let mut list = node.command("nsenter");
        list.args([
            "--target",
            &pid.to_string(),
            "--net",
            "nft",
            "list",
            "table",
            "inet",
            "underpass",
        ]);
        list.output().unwrap().status.success().then_some(())
    });
    let took = started.elapsed();
    let responses = state.ask("client");
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    format!("restored after {} ms\n{responses}", took.as_millis())
}

fn unlabelled(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    kube.kubectl(&["delete", "-n", SHOP, "peerauthentication/strict"]);
    let requests = kube.request_on_one_connection(SHOP, "client", &state.service[0]);
    let started = Instant::now();
    kube.namespace(SHOP, false);
    for pod in ["client", "server", "newcomer"] {
        kube.await_enrolled(SHOP, pod, false);
    }
    let took = started.elapsed();
    let answers = requests.await_answers();
    state.requests = Some(requests);
    format!(
        "none is announced after {:.2} s; {answers} responses on the open connection",
        took.as_secs_f64()
    )
}

fn uninstalled(state: &mut DemoState<'_>) -> String {
    let kube = state.kube;
    drop(state.requests.take());
    kube.namespace(SHOP, true);
    kube.await_enrolled(SHOP, "client", true);
    kube.uninstall_underpass();
    let left = until("nothing is left", || {
        let left: Vec<_> = kube
            .nodes
            .iter()
            .flat_map(|node| kube.leftovers_on(node))
            .collect();
        left.is_empty().then_some(left.len())
    });
    let responses = state.ask("client");
    kube.kubectl(&["delete", "namespace", SHOP, "outside", "--wait=false"]);
    format!(
        "{left} files, conflist entries or tables are left on the nodes; pods communicate in \
         plain text\n{responses}"
    )
}

fn policy(kind: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": SHOP },
        "spec": spec,
    })
    .to_string()
}

impl DemoState<'_> {
    /// Sends requests from a pod to the service, over each family.
    #[track_caller]
    fn ask(&self, pod: &str) -> String {
        self.kube.await_answer(
            SHOP,
            pod,
            &self.service.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }

    /// Waits until the client's proxy knows that the server accepts tunnels.
    fn await_tunnels(&self) {
        until("the client's proxy knows the server's tunnel", || {
            let (_, list) = self.kube.underpass("node-1", &["workloads", "--json"]);
            let workloads: Value = serde_json::from_str(&list).ok()?;
            let is = |w: &Value| {
                w["namespace"] == SHOP && w["name"] == "server" && w["protocol"] == "HBONE"
            };
            let list = workloads.as_array().or(workloads["workloads"].as_array())?;
            list.iter().any(is).then_some(())
        });
    }
}
