//! The agent in a cluster: the same facts as in a mesh file come from the API server, and what became of the pods is told
//! to it.

mod announce;
mod cgroup;
mod departures;
mod events;
mod facts;
mod newcomers;
mod processes;
mod taint;
mod unpresented;
mod unseen;
mod watching;

use std::rc::Rc;

pub(crate) use departures::release_departed;
pub(crate) use events::Events;
pub(crate) use facts::Cluster;
pub(crate) use newcomers::present_newcomers;

use crate::agent::Agent;

/// Everything that goes on beside the pods themselves, for as long as the agent lives.
pub(crate) fn keep(agent: &Rc<Agent>, cluster: &Rc<Cluster>) {
    watching::follow_all(agent, cluster);
    tokio::task::spawn_local(announce::keep(agent.clone(), cluster.clone()));
    tokio::task::spawn_local(events::keep(cluster.clone()));
    tokio::task::spawn_local(taint::keep(agent.clone(), cluster.clone()));
}
