//! The agent in a Kubernetes cluster: reads pods and namespaces from the API server, and reports
//! Events and annotations of pods to it.

mod annotation;
mod capabilities;
mod cgroup;
mod cluster;
mod departures;
mod events;
mod existing_pods;
mod late_starts;
mod lookup;
mod placement;
mod processes;
pub(crate) mod retirement;
mod search;
mod taint;
mod unpresented;
mod watches;

use std::rc::Rc;

pub(crate) use cluster::Cluster;
pub(crate) use events::EventRecorder;
pub(crate) use existing_pods::PodSearcher;

use crate::inbox::Inbox;
use crate::pods_view::PodsView;
use crate::readiness::Readiness;

/// Spawns the watches and the tasks that write to the API server.
pub(crate) fn spawn_tasks(
    cluster: &Rc<Cluster>,
    pods: &PodsView,
    readiness: &Readiness,
    searcher: PodSearcher,
    inbox: &Inbox,
    daemon_set: Option<&str>,
) {
    watches::spawn_all(inbox, cluster, daemon_set);
    tokio::task::spawn_local(searcher.run());
    tokio::task::spawn_local(annotation::run(pods.clone(), cluster.clone()));
    tokio::task::spawn_local(events::run(cluster.client.clone(), cluster.events.clone()));
    tokio::task::spawn_local(taint::run(readiness.clone(), cluster.clone()));
}

/// From now on, the runtime is to blame for a pod that starts without an ADD while the agent is
/// ready.
pub(crate) fn expect_calls_of_plugin(cluster: &Rc<Cluster>, readiness: &Readiness) {
    tokio::task::spawn_local(late_starts::run(readiness.clone(), cluster.clone()));
}
