//! A snapshot of the state of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_status::{DEFAULT_ADMIN, NodeStatus};
use futures_util::StreamExt;
use futures_util::stream::iter;
use kubernetes::{EnablementSelectors, Labels, Pod};
use serde_json::Value;

use super::{AGENTS, Api, DaemonSet, Istiod, NetworkPolicy, PROXIES};
use crate::proxy::ADMIN;

/// Number of nodes queried concurrently.
const CONCURRENCY: usize = 16;

/// A snapshot of a cluster. An `Err` has the reason why the data is unavailable.
#[derive(Debug)]
pub(crate) struct ClusterSnapshot {
    /// Kubernetes version, such as v1.34.4.
    pub(crate) version: String,
    pub(crate) daemon_sets: Vec<DaemonSet>,
    pub(crate) istiods: Result<Vec<Istiod>, String>,
    /// Whether the sidecars that istiod injects wait for Istio's CNI plugin.
    pub(crate) sidecars_await_plugin: Result<bool, String>,
    /// The root certificates that istiod published, as PEM; `None` if there are none.
    pub(crate) roots: Result<Option<String>, String>,
    pub(crate) nodes: Vec<NodeSnapshot>,
    pub(crate) pods: Vec<Pod>,
    /// Labels by namespace.
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) network_policies: Result<Vec<NetworkPolicy>, String>,
    /// The agents' enablement selectors; `None` if the label of the mesh selects pods.
    pub(crate) selectors: Option<EnablementSelectors>,
}

/// A snapshot of a node.
#[derive(Debug, Default)]
pub(crate) struct NodeSnapshot {
    pub(crate) name: String,
    /// Status of the agent; `None` if the node has no agent.
    pub(crate) agent: Option<Result<NodeStatus, String>>,
    /// How far the node's clock is ahead of this machine's, in milliseconds; `None` if the agent
    /// does not report the time.
    pub(crate) clock_ahead_ms: Option<i64>,
    /// Status of each proxy; there are two during an upgrade.
    pub(crate) proxies: Vec<Result<Value, String>>,
}

impl NodeSnapshot {
    /// The status of the agent, if it responded.
    pub(crate) fn status(&self) -> Option<&NodeStatus> {
        self.agent.as_ref()?.as_ref().ok()
    }
}

impl Default for ClusterSnapshot {
    fn default() -> Self {
        Self {
            version: String::new(),
            daemon_sets: Vec::new(),
            istiods: Ok(Vec::new()),
            sidecars_await_plugin: Ok(false),
            roots: Ok(None),
            nodes: Vec::new(),
            pods: Vec::new(),
            namespaces: BTreeMap::new(),
            network_policies: Ok(Vec::new()),
            selectors: None,
        }
    }
}

impl ClusterSnapshot {
    /// Returns the DaemonSet that runs a program.
    pub(crate) fn running(&self, program: &str) -> Option<&DaemonSet> {
        self.daemon_sets.iter().find(|d| d.runs(program))
    }

    /// Returns the namespace of the installation.
    pub(crate) fn namespace(&self) -> Option<&str> {
        let agents = self.running("underpass-agent");
        let installed = agents.or_else(|| self.running("underpass-proxy"));
        installed.map(|set| set.replicas.namespace.as_str())
    }
}

/// Takes a snapshot of a cluster.
///
/// # Errors
/// The API server does not respond, or denies access to required objects.
pub(crate) async fn take_snapshot(api: &Api) -> anyhow::Result<ClusterSnapshot> {
    let version = api.get("/version").await?["gitVersion"]
        .as_str()
        .unwrap_or("?")
        .to_owned();
    let [nodes, namespaces, daemon_sets] = [
        api.get("/api/v1/nodes").await?,
        api.get("/api/v1/namespaces").await?,
        api.get("/apis/apps/v1/daemonsets").await?,
    ];
    let pods = api.pods().await?;
    let istiods = "/apis/apps/v1/deployments?labelSelector=app%3Distiod";
    let istiods = api.get(istiods).await.map_err(reason);
    let network_policies = api.get("/apis/networking.k8s.io/v1/networkpolicies").await;
    let network_policies = network_policies
        .and_then(|mut list| Ok(serde_json::from_value(list["items"].take())?))
        .map_err(reason);
    let labels =
        |o: &Value| serde_json::from_value(o["metadata"]["labels"].clone()).unwrap_or_default();
    let mut snapshot = ClusterSnapshot {
        version,
        daemon_sets: items(&daemon_sets).map(DaemonSet::read).collect(),
        istiods: istiods.map(|list| items(&list).map(Istiod::read).collect()),
        pods,
        namespaces: items(&namespaces).map(|n| (name(n), labels(n))).collect(),
        network_policies,
        ..ClusterSnapshot::default()
    };
    let selectors = snapshot
        .running("underpass-agent")
        .and_then(|agents| agents.env.get("AMBIENT_ENABLEMENT_SELECTOR")?.parse().ok());
    snapshot.selectors = selectors;
    snapshot.roots = roots(api, &snapshot).await;
    snapshot.sidecars_await_plugin = sidecars_await_plugin(api, &snapshot).await;

    let running_pods = |label: &str| {
        let (key, value) = label.split_once('=').unwrap_or_default();
        let has_label = |p: &Pod| {
            let labels = p.metadata.labels.as_ref();
            labels.and_then(|l| l.get(key)).is_some_and(|v| v == value)
        };
        let in_namespace = |p: &Pod| Some(p.namespace()) == snapshot.namespace();
        let matches = |p: &&Pod| in_namespace(p) && has_label(p) && p.status.phase == "Running";
        snapshot.pods.iter().filter(matches).collect::<Vec<_>>()
    };
    let (agents, proxies) = (running_pods(AGENTS), running_pods(PROXIES));
    let queries = items(&nodes).map(name).map(|node| {
        let on = |pods: &[&Pod]| {
            let pods = pods.iter().filter(|p| p.spec.node_name == node);
            pods.map(|p| (*p).clone()).collect::<Vec<_>>()
        };
        query_node(api, on(&agents), on(&proxies), node)
    });
    let queries = iter(queries.collect::<Vec<_>>()).buffer_unordered(CONCURRENCY);
    snapshot.nodes = queries.collect().await;
    snapshot.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(snapshot)
}

async fn query_node(api: &Api, agents: Vec<Pod>, proxies: Vec<Pod>, name: String) -> NodeSnapshot {
    let mut snapshot = NodeSnapshot {
        name,
        ..NodeSnapshot::default()
    };
    if let Some(pod) = agents.first() {
        let before = now_ms();
        let status = api.query_pod(pod, DEFAULT_ADMIN.port(), "/status").await;
        let status: anyhow::Result<NodeStatus> = status;
        if let Some(node_time) = status.as_ref().ok().and_then(|a| a.time_ms) {
            // The agent read its clock between `before` and `after`.
            let (node_time, after) = (i64::try_from(node_time).unwrap_or_default(), now_ms());
            snapshot.clock_ahead_ms = Some(node_time - node_time.clamp(before, after));
        }
        snapshot.agent = Some(status.map_err(reason));
    }
    for pod in &proxies {
        let status = api.query_pod(pod, ADMIN.port(), "/status").await;
        snapshot.proxies.push(status.map_err(reason));
    }
    snapshot
}

/// Reads the root certificates in the namespace of the proxies, or of istiod before the
/// installation.
async fn roots(api: &Api, snapshot: &ClusterSnapshot) -> Result<Option<String>, String> {
    let istiod = snapshot.istiods.as_ref().ok().and_then(|all| all.first());
    let istiod = istiod.map(|i| i.replicas.namespace.as_str());
    let Some(namespace) = snapshot.namespace().or(istiod) else {
        return Ok(None);
    };
    let path = format!(
        "/api/v1/namespaces/{namespace}/configmaps?fieldSelector=metadata.name%3Distio-ca-root-cert"
    );
    let list = api.get(&path).await.map_err(reason)?;
    let pem = items(&list).next().map(|map| &map["data"]["root-cert.pem"]);
    Ok(pem.and_then(Value::as_str).map(str::to_owned))
}

/// Whether a configuration of istiod's injector, of which each revision has one, leaves the
/// redirection of sidecars to Istio's CNI plugin.
async fn sidecars_await_plugin(api: &Api, snapshot: &ClusterSnapshot) -> Result<bool, String> {
    let istiods = snapshot.istiods.iter().flatten();
    let namespaces: BTreeSet<&str> = istiods.map(|i| i.replicas.namespace.as_str()).collect();
    for namespace in namespaces {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let list = api.get(&path).await.map_err(reason)?;
        let injectors = items(&list).filter(|map| name(map).starts_with("istio-sidecar-injector"));
        for injector in injectors {
            let values = injector["data"]["values"].as_str().unwrap_or_default();
            let values: Value = serde_json::from_str(values).unwrap_or_default();
            if values["pilot"]["cni"]["enabled"] == true {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The reason why data is unavailable.
fn reason(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn name(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str();
    name.unwrap_or_default().to_owned()
}
