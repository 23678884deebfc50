//! The watches: this node's pods, all namespaces, and the node itself.

use std::rc::Rc;

use ::kubernetes::{Api, Change, Namespace, Node, Pod, Selection, follow};

use super::facts::Cluster;
use crate::agent::Agent;

/// Begins to follow them, in tasks of their own.
pub(super) fn follow_all(agent: &Rc<Agent>, cluster: &Rc<Cluster>) {
    tokio::task::spawn_local(pods(agent.clone(), cluster.clone()));
    tokio::task::spawn_local(namespaces(agent.clone(), cluster.clone()));
    tokio::task::spawn_local(node(agent.clone(), cluster.clone()));
}

async fn pods(agent: Rc<Agent>, cluster: Rc<Cluster>) {
    let here = Selection { fields: format!("spec.nodeName={}", cluster.node), ..Selection::default() };
    let tell = |change: Change<Pod>| {
        match change {
            Change::All(pods) => {
                tracing::info!(pods = pods.len(), "the API server has told the pods of this node");
                cluster.all_pods(pods);
            }
            Change::Put(pod) => {
                // A kubelet writes much about a pod that changes nothing here.
                if !cluster.put_pod(pod) {
                    return;
                }
            }
            Change::Gone(pod) => cluster.pod_is_gone(&pod),
            Change::Lost(why) => return lost("pods", &why),
        }
        agent.membership.notify_one();
        cluster.changed.notify_one();
    };
    follow(Api::all(cluster.client.clone()), &here, tell).await;
}

async fn namespaces(agent: Rc<Agent>, cluster: Rc<Cluster>) {
    let tell = |change: Change<Namespace>| {
        let changed = match change {
            Change::All(namespaces) => {
                cluster.all_namespaces(&namespaces);
                true
            }
            Change::Put(namespace) => cluster.put_namespace(&namespace),
            Change::Gone(namespace) => {
                cluster.namespace_is_gone(&namespace);
                false
            }
            Change::Lost(why) => return lost("namespaces", &why),
        };
        if changed {
            agent.membership.notify_one();
            cluster.changed.notify_one();
        }
    };
    follow(Api::all(cluster.client.clone()), &Selection::default(), tell).await;
}

async fn node(agent: Rc<Agent>, cluster: Rc<Cluster>) {
    let own = Selection { fields: format!("metadata.name={}", cluster.node), ..Selection::default() };
    let put = |node: Option<Node>| {
        let node = node.unwrap_or_default();
        *cluster.taints.borrow_mut() = (node.spec.taints, node.metadata.resource_version);
        cluster.node_changed.notify_one();
    };
    let tell = |change: Change<Node>| match change {
        Change::All(nodes) => {
            let [pods, namespaces, _] = cluster.listed.get();
            cluster.listed.set([pods, namespaces, true]);
            put(nodes.into_iter().next());
            // It may be the last of the three: what waits for all of them goes on.
            agent.membership.notify_one();
            cluster.changed.notify_one();
        }
        Change::Put(node) => put(Some(node)),
        Change::Gone(_) => put(None),
        Change::Lost(why) => lost("node", &why),
    };
    follow(Api::all(cluster.client.clone()), &own, tell).await;
}

fn lost(what: &str, why: &str) {
    tracing::warn!("changes of {what} are not told for now, and what was told last stays in force: {why}");
}
