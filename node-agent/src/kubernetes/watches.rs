//! Watches this node's pods, all namespaces, the node itself, and the agents' DaemonSet.

use std::rc::Rc;

use ::kubernetes::{Api, DaemonSet, Namespace, Node, Pod, Selector, WatchEvent, watch};

use super::cluster::{Cluster, ReceivedLists, WatchedSet};
use crate::inbox::{Inbox, Message};

/// Spawns a task for each watch.
pub(super) fn spawn_all(inbox: &Inbox, cluster: &Rc<Cluster>, daemon_set: Option<&str>) {
    if let (Some(name), Some(namespace)) = (daemon_set, &cluster.own_namespace) {
        let api = Api::namespaced(cluster.client.clone(), namespace);
        tokio::task::spawn_local(agents(api, name.to_owned(), cluster.clone()));
    }
    tokio::task::spawn_local(pods(inbox.clone(), cluster.clone()));
    tokio::task::spawn_local(namespaces(inbox.clone(), cluster.clone()));
    tokio::task::spawn_local(node(inbox.clone(), cluster.clone()));
}

async fn pods(inbox: Inbox, cluster: Rc<Cluster>) {
    let fields = format!("spec.nodeName={}", cluster.node);
    let on_this_node = Selector {
        fields,
        ..Selector::default()
    };
    let handle = |event: WatchEvent<Pod>| {
        match event {
            WatchEvent::Listed(pods) => {
                tracing::info!(pods = pods.len(), "received the list of this node's pods");
                cluster.set_pods(pods);
            }
            WatchEvent::Applied(pod) => {
                // Most status updates by the kubelet change nothing relevant.
                if !cluster.put_pod(pod) {
                    return;
                }
            }
            WatchEvent::Deleted(pod) => cluster.remove_pod(&pod),
            WatchEvent::Interrupted(why) => return interrupted("pods", &why),
        }
        membership_changed(&inbox, &cluster);
    };
    watch(Api::all(cluster.client.clone()), &on_this_node, handle).await;
}

async fn namespaces(inbox: Inbox, cluster: Rc<Cluster>) {
    let handle = |event: WatchEvent<Namespace>| {
        let changed = match event {
            WatchEvent::Listed(namespaces) => {
                cluster.set_namespaces(&namespaces);
                true
            }
            WatchEvent::Applied(namespace) => cluster.put_namespace(&namespace),
            WatchEvent::Deleted(namespace) => {
                cluster.remove_namespace(&namespace);
                false
            }
            WatchEvent::Interrupted(why) => return interrupted("namespaces", &why),
        };
        if changed {
            membership_changed(&inbox, &cluster);
        }
    };
    watch(
        Api::all(cluster.client.clone()),
        &Selector::default(),
        handle,
    )
    .await;
}

async fn node(inbox: Inbox, cluster: Rc<Cluster>) {
    let fields = format!("metadata.name={}", cluster.node);
    let this_node = Selector {
        fields,
        ..Selector::default()
    };
    let put = |node: Option<Node>| {
        *cluster.node_object.borrow_mut() = node;
        cluster.node_changed.notify_one();
    };
    let handle = |event: WatchEvent<Node>| match event {
        WatchEvent::Listed(nodes) => {
            cluster.listed.set(ReceivedLists {
                node: true,
                ..cluster.listed.get()
            });
            put(nodes.into_iter().next());
            // This may complete the initial lists, for which membership waits.
            membership_changed(&inbox, &cluster);
        }
        WatchEvent::Applied(node) => put(Some(node)),
        WatchEvent::Deleted(_) => put(None),
        WatchEvent::Interrupted(why) => interrupted("node", &why),
    };
    watch(Api::all(cluster.client.clone()), &this_node, handle).await;
}

/// Watches the agents' DaemonSet. An open watch still reports its deletion when the permission to
/// read it is revoked.
async fn agents(api: Api<DaemonSet>, name: String, cluster: Rc<Cluster>) {
    let fields = format!("metadata.name={name}");
    let only = Selector {
        fields,
        ..Selector::default()
    };
    let handle = |event: WatchEvent<DaemonSet>| {
        let set = match event {
            WatchEvent::Listed(sets) => sets.into_iter().next(),
            WatchEvent::Applied(set) => Some(set),
            WatchEvent::Deleted(_) => None,
            WatchEvent::Interrupted(why) => return interrupted("the agents' DaemonSet", &why),
        };
        let watched = match set {
            Some(set) => WatchedSet::Exists(Box::new(set)),
            None => {
                tracing::info!("the agents' DaemonSet was deleted: this agent retires on shutdown");
                WatchedSet::Deleted
            }
        };
        *cluster.daemon_set.borrow_mut() = watched;
    };
    watch(api, &only, handle).await;
}

fn membership_changed(inbox: &Inbox, cluster: &Cluster) {
    cluster.observe_belonging();
    inbox.send(Message::Reconcile);
    cluster.unsettled.notify_one();
    cluster.changed.notify_one();
}

fn interrupted(what: &str, why: &str) {
    tracing::warn!("watch of {what} interrupted; using last known state: {why}");
}
