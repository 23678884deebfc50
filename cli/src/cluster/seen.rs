//! What was seen of a cluster at one time.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_status::{DEFAULT_ADMIN, NodeStatus};
use futures_util::StreamExt;
use futures_util::stream::iter;
use kubernetes::Pod;
use serde_json::Value;

use super::{AGENTS, Api, DaemonSet, Istiod, PROXIES};
use crate::proxy::ADMIN;

/// So many nodes are asked at the same time.
const AT_ONCE: usize = 16;

/// A cluster. What could not be seen is told as a reason.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Such as v1.34.4.
    pub(crate) version: String,
    pub(crate) daemon_sets: Vec<DaemonSet>,
    pub(crate) istiods: Result<Vec<Istiod>, String>,
    /// The certificates that istiod says are its roots, as PEM; none where it has not said so.
    pub(crate) roots: Result<Option<String>, String>,
    pub(crate) nodes: Vec<NodeSeen>,
    pub(crate) pods: Vec<Pod>,
    /// The labels of namespaces.
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// A node.
#[derive(Debug, Default)]
pub(crate) struct NodeSeen {
    pub(crate) name: String,
    /// What its agent says; none where there is none.
    pub(crate) agent: Option<Result<NodeStatus, String>>,
    /// How much later the node's clock is than ours, in milliseconds; none when its agent does not say.
    pub(crate) clock_ahead_ms: Option<i64>,
    /// What its proxies say: two during an upgrade.
    pub(crate) proxies: Vec<Result<Value, String>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            version: String::new(),
            daemon_sets: Vec::new(),
            istiods: Ok(Vec::new()),
            roots: Ok(None),
            nodes: Vec::new(),
            pods: Vec::new(),
            namespaces: BTreeMap::new(),
        }
    }
}

impl Seen {
    /// The DaemonSet of the agents.
    pub(crate) fn agents(&self) -> Option<&DaemonSet> {
        self.daemon_sets.iter().find(|d| d.runs("underpass-agent"))
    }

    /// The DaemonSet of the proxies.
    pub(crate) fn proxies(&self) -> Option<&DaemonSet> {
        self.daemon_sets.iter().find(|d| d.runs("underpass-proxy"))
    }

    /// Where Underpass is installed.
    pub(crate) fn namespace(&self) -> Option<&str> {
        Some(self.agents().or_else(|| self.proxies())?.running.namespace.as_str())
    }
}

/// Looks at all of it.
///
/// # Errors
/// The API server does not answer, or refuses what cannot be done without.
pub(crate) async fn look(api: &Api) -> anyhow::Result<Seen> {
    let version = api.get("/version").await?["gitVersion"].as_str().unwrap_or("?").to_owned();
    let [nodes, namespaces, daemon_sets] = [
        api.get("/api/v1/nodes").await?,
        api.get("/api/v1/namespaces").await?,
        api.get("/apis/apps/v1/daemonsets").await?,
    ];
    let pods = api.pods().await?;
    let istiods = api.get("/apis/apps/v1/deployments?labelSelector=app%3Distiod").await;
    let istiods = istiods.map(|list| items(&list).map(Istiod::read).collect::<Vec<_>>()).map_err(|e| format!("{e:#}"));
    let daemon_sets: Vec<DaemonSet> = items(&daemon_sets).map(DaemonSet::read).collect();
    let mut seen = Seen { version, daemon_sets, istiods, pods, ..Seen::default() };
    let labels = |o: &Value| serde_json::from_value(o["metadata"]["labels"].clone()).unwrap_or_default();
    seen.namespaces = items(&namespaces).map(|n| (name(n), labels(n))).collect();
    seen.roots = roots(api, &seen).await;

    let of_ours = |label: &str| {
        let (key, value) = label.split_once('=').unwrap_or_default();
        let is = move |p: &&Pod| {
            let labels = p.metadata.labels.as_ref();
            labels.and_then(|l| l.get(key)).is_some_and(|v| v == value) && p.status.phase == "Running"
        };
        seen.pods.iter().filter(|p| Some(p.namespace()) == seen.namespace()).filter(is).collect::<Vec<_>>()
    };
    let (agents, proxies) = (of_ours(AGENTS), of_ours(PROXIES));
    let asked = items(&nodes).map(name).map(|node| {
        let on = |pods: &[&Pod]| pods.iter().copied().filter(|p| p.spec.node_name == node).cloned().collect::<Vec<_>>();
        ask_node(api, on(&agents), on(&proxies), node)
    });
    let mut asked: Vec<NodeSeen> = iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
    asked.sort_by(|a, b| a.name.cmp(&b.name));
    seen.nodes = asked;
    Ok(seen)
}

async fn ask_node(api: &Api, agents: Vec<Pod>, proxies: Vec<Pod>, name: String) -> NodeSeen {
    let mut seen = NodeSeen { name, ..NodeSeen::default() };
    if let Some(pod) = agents.first() {
        let (before, answer) = (now_ms(), api.ask::<NodeStatus>(pod, DEFAULT_ADMIN.port(), "/status").await);
        if let Some(theirs) = answer.as_ref().ok().and_then(|a| a.time_ms) {
            // It was told somewhere between the question and the answer.
            let (theirs, after) = (i64::try_from(theirs).unwrap_or_default(), now_ms());
            seen.clock_ahead_ms = Some(theirs - theirs.clamp(before, after));
        }
        seen.agent = Some(answer.map_err(|e| format!("{e:#}")));
    }
    for pod in &proxies {
        seen.proxies.push(api.ask(pod, ADMIN.port(), "/status").await.map_err(|e| format!("{e:#}")));
    }
    seen
}

/// The roots that the proxies begin with, or those beside istiod before anything is installed.
async fn roots(api: &Api, seen: &Seen) -> Result<Option<String>, String> {
    let istiod = seen.istiods.as_ref().ok().and_then(|all| all.first()).map(|i| i.running.namespace.as_str());
    let Some(namespace) = seen.namespace().or(istiod) else { return Ok(None) };
    let path = format!("/api/v1/namespaces/{namespace}/configmaps?fieldSelector=metadata.name%3Distio-ca-root-cert");
    let list = api.get(&path).await.map_err(|e| format!("{e:#}"))?;
    Ok(items(&list).next().and_then(|map| Some(map["data"]["root-cert.pem"].as_str()?.to_owned())))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}
