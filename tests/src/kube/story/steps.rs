//! The steps. Each returns what it has seen, and stops when that is not what was to be seen.

use std::time::Instant;

use serde_json::{Value, json};

use super::Scene;
use crate::cluster::istiod::NAMESPACE;
use crate::kube::app::App;
use crate::kube::await_within;
use crate::kube::underpass::{AGENTS, PROXIES};
use crate::sniffer::Counter;

/// The namespace of the story.
const SHOP: &str = "shop";
/// What every request of the application begins with.
const READABLE: &str = "Host: app";

type Step = fn(&mut Scene<'_>) -> String;

/// In their order.
pub const ALL: [(&str, Step); 13] = [
    ("two pods talk, on two nodes, without Underpass", plain),
    ("helm installs agent and proxy on both nodes", install),
    ("the namespace is labelled: both running pods join, and a connection that was open goes on", label),
    ("a new pod is in the mesh when it starts", created),
    ("between the nodes there is only TLS, and both identities are known", encrypted),
    ("istioctl reads the proxies", istioctl),
    ("STRICT: a pod outside the mesh is refused, and the kubelet's probes pass", strict),
    ("an AuthorizationPolicy denies: the open connection is cut, and the reason is told", denied),
    ("the proxy is killed: nothing leaves in plain text, and the next one serves the same pods", killed),
    ("the agents are rolled while pods start: every one is in the mesh", rolled),
    ("the rules of a pod are deleted: they are put right at once", repaired),
    ("the label is removed: pods leave, and a connection that was open goes on", unlabelled),
    ("helm uninstalls, and nothing is left on the nodes", uninstalled),
];

fn app<'a>(name: &'a str, node: &'static str) -> App<'a> {
    App { namespace: SHOP, name, node: Some(node), labels: Value::Null }
}

fn plain(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    kube.namespace(SHOP, false);
    kube.launch(&[app("client", "node-1"), app("server", "node-2")]);
    scene.service = kube.service_of_families(SHOP, "server");
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    let said = scene.ask("client");
    let seen = counter.stop();
    assert!(seen.readable > 0 && seen.tunnel == 0, "{seen:?}");
    format!("{said}readable on the wire: {} frames", seen.readable)
}

fn install(scene: &mut Scene<'_>) -> String {
    let started = Instant::now();
    scene.kube.import_underpass();
    let imported = started.elapsed();
    scene.kube.install_underpass(&[]);
    let ready = started.elapsed() - imported;
    let pods = scene.kube.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "wide", "--no-headers"]);
    let ours = pods.lines().filter(|l| l.contains(AGENTS) || l.contains(PROXIES));
    let ours: Vec<_> = ours.map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(ours.len(), 4, "{pods}");
    format!("ready after {:.1} s\n{}", ready.as_secs_f64(), ours.join("\n"))
}

fn label(scene: &mut Scene<'_>) -> String {
    let held = scene.kube.hold(SHOP, "client", &scene.service[0]);
    let started = Instant::now();
    scene.kube.namespace(SHOP, true);
    for pod in ["client", "server"] {
        scene.kube.await_enrolled(SHOP, pod, true);
    }
    let took = started.elapsed();
    let answers = held.goes_on();
    format!(
        "both verified and announced after {:.2} s; the open connection has had {answers} answers",
        took.as_secs_f64()
    )
}

fn created(scene: &mut Scene<'_>) -> String {
    scene.kube.launch(&[app("newcomer", "node-1")]);
    scene.kube.await_enrolled(SHOP, "newcomer", true);
    let (_, status) = scene.kube.underpass("node-1", &["status", "--all"]);
    let line = status.lines().find(|l| l.contains("newcomer")).unwrap_or_else(|| panic!("no line of it: {status}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn encrypted(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    scene.await_tunnels();
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    let said = scene.ask("client");
    let seen = counter.stop();
    assert!(seen.readable == 0 && seen.tls > 0, "{seen:?}");
    let identity = |of: &str| format!("spiffe://cluster.local/ns/{SHOP}/sa/{of}");
    let log = kube.proxy_log("node-2");
    let both = |l: &&str| [identity("client"), identity("server")].iter().all(|id| l.contains(id.as_str()));
    let line = log.lines().rfind(both).unwrap_or_else(|| panic!("no access log line with both identities:\n{log}"));
    format!("{said}{} segments of tunnels, {} begin with a TLS record, none is readable\n{line}", seen.tunnel, seen.tls)
}

fn istioctl(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    let workloads = kube.run("istioctl", &["ztunnel-config", "workloads", "--node", "node-1"]);
    let line = workloads.lines().find(|l| l.contains(SHOP) && l.contains("server") && l.contains("HBONE"));
    let line = line.unwrap_or_else(|| panic!("no line of the server with HBONE: {workloads}"));
    let certificates = kube.run("istioctl", &["ztunnel-config", "certificates", "--node", "node-1"]);
    assert!(certificates.contains(&format!("ns/{SHOP}/sa/client")), "{certificates}");
    let proxies = kube.run("istioctl", &["proxy-status"]);
    assert_eq!(proxies.lines().filter(|l| l.contains("ztunnel-")).count(), 2, "{proxies}");
    format!("{line}\n{}", proxies.trim_end())
}

fn strict(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    kube.namespace("outside", false);
    kube.launch(&[App { namespace: "outside", name: "outsider", node: Some("node-1"), labels: Value::Null }]);
    let before = kube.hear("outside", "outsider", &[&scene.service[0]]);
    kube.apply(&policy("PeerAuthentication", "strict", &json!({ "mtls": { "mode": "STRICT" } })));
    let refused = await_within(15, "the outsider is refused", || {
        let (answered, said) = kube.ask("outside", "outsider", &[&scene.service[0]]);
        (!answered).then_some(said)
    });
    let said = scene.ask("client");
    // Probes are made every second: two more of them.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    kube.await_pod(SHOP, "server");
    let log = kube.proxy_log("node-2");
    let why = log.lines().rfind(|l| l.contains("outside") && l.contains("UP-PROXY")).unwrap_or_default();
    format!("before: {before}then: {refused}client: {said}server is Ready\n{why}")
}

fn denied(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    let held = kube.hold(SHOP, "client", scene.service.last().unwrap());
    let principals = [format!("cluster.local/ns/{SHOP}/sa/client")];
    let rules = json!([{ "from": [{ "source": { "principals": principals } }] }]);
    let spec = json!({ "selector": { "matchLabels": { "app": "server" } }, "action": "DENY", "rules": rules });
    kube.apply(&policy("AuthorizationPolicy", "no-client", &spec));
    let cut = held.is_cut();
    let newcomer = scene.ask("newcomer");
    let (_, why) = kube.underpass("node-1", &["why", &format!("{SHOP}/client"), &format!("{SHOP}/server:80")]);
    kube.kubectl(&["delete", "-n", SHOP, "authorizationpolicy/no-client"]);
    format!("{cut}\nnewcomer: {newcomer}{}", why.trim_end())
}

fn killed(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    scene.ask("client");
    let proxy = await_within(30, "a proxy is ready", || kube.of(PROXIES, "node-1"));
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    kube.kubectl(&["delete", "pod", "-n", NAMESPACE, &proxy, "--grace-period=0", "--force"]);
    let (mut refused, started) = (0, Instant::now());
    await_within(60, "the next proxy serves", || {
        let (answered, _) = kube.ask(SHOP, "client", &[&scene.service[0]]);
        let next = kube.of(PROXIES, "node-1").is_some_and(|p| p != proxy);
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

fn rolled(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    kube.kubectl(&["rollout", "restart", "-n", NAMESPACE, &format!("daemonset/{AGENTS}")]);
    let names: Vec<_> = (0..6).map(|n| format!("during-{n}")).collect();
    let apps: Vec<_> =
        names.iter().enumerate().map(|(n, name)| app(name, if n % 2 == 0 { "node-1" } else { "node-2" })).collect();
    kube.launch(&apps);
    kube.await_rollout(AGENTS);
    names.iter().for_each(|name| kube.await_enrolled(SHOP, name, true));
    let asked = names.iter().map(|name| scene.ask(name).lines().count()).sum::<usize>();
    format!("{} pods started meanwhile, {asked} requests of theirs were answered", names.len())
}

fn repaired(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    let node = kube.node("node-1");
    let pid = kube.process_of(SHOP, "client");
    let counter = Counter::start(&kube.node("node-2").netns, "eth0", READABLE);
    node.run("nsenter", &["--target", &pid.to_string(), "--net", "nft", "delete", "table", "inet", "underpass"]);
    let started = Instant::now();
    await_within(20, "the table is there again", || {
        let mut list = node.command("nsenter");
        list.args(["--target", &pid.to_string(), "--net", "nft", "list", "table", "inet", "underpass"]);
        list.output().unwrap().status.success().then_some(())
    });
    let took = started.elapsed();
    let said = scene.ask("client");
    let seen = counter.stop();
    assert_eq!(seen.readable, 0, "{seen:?}");
    format!("seen again after {} ms\n{said}", took.as_millis())
}

fn unlabelled(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    kube.kubectl(&["delete", "-n", SHOP, "peerauthentication/strict"]);
    let held = kube.hold(SHOP, "client", &scene.service[0]);
    let started = Instant::now();
    kube.namespace(SHOP, false);
    for pod in ["client", "server", "newcomer"] {
        kube.await_enrolled(SHOP, pod, false);
    }
    let took = started.elapsed();
    let answers = held.goes_on();
    scene.held = Some(held);
    format!("none is announced after {:.2} s; the open connection has had {answers} answers", took.as_secs_f64())
}

fn uninstalled(scene: &mut Scene<'_>) -> String {
    let kube = scene.kube;
    drop(scene.held.take());
    kube.namespace(SHOP, true);
    kube.await_enrolled(SHOP, "client", true);
    kube.uninstall_underpass();
    let left = await_within(30, "nothing is left", || {
        let left: Vec<_> = kube.nodes.iter().flat_map(|node| kube.left_on(node)).collect();
        left.is_empty().then_some(left.len())
    });
    let said = scene.ask("client");
    kube.kubectl(&["delete", "namespace", SHOP, "outside", "--wait=false"]);
    format!("{left} files, conflist entries, tables or rules of ours on either node; pods talk in plain text\n{said}")
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

impl Scene<'_> {
    /// A pod asks the service over each family.
    #[track_caller]
    fn ask(&self, pod: &str) -> String {
        self.kube.hear(SHOP, pod, &self.service.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until istiod has told the client's proxy that the server has a tunnel.
    fn await_tunnels(&self) {
        await_within(20, "the client's proxy knows the server's tunnel", || {
            let (_, list) = self.kube.underpass("node-1", &["workloads", "--json"]);
            let workloads: Value = serde_json::from_str(&list).ok()?;
            let is = |w: &Value| w["namespace"] == SHOP && w["name"] == "server" && w["protocol"] == "HBONE";
            let list = workloads.as_array().or(workloads["workloads"].as_array())?;
            list.iter().any(is).then_some(())
        });
    }
}
