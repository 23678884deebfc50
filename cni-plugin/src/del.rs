//! DEL: removes Underpass's rules from a pod. It never fails, since a failing DEL blocks the pod's
//! deletion.

use std::time::Duration;

use cni_spec::{Config, Environment};
use handoff::{FromAgent, FromPlugin};
use netns::NetNs;

use crate::agent::ask;
use crate::call::{attachment, kubernetes_pod};

/// Time limit for the agent's answer; an agent that misses a DEL releases the pod later.
const DEADLINE: Duration = Duration::from_secs(1);

/// Runs a DEL.
pub(crate) fn run(input: &[u8]) {
    let environment = Environment::for_del(crate::variable);
    let config = Config::parse_leniently(input).ok();
    let netns = environment
        .netns
        .as_ref()
        .and_then(|path| NetNs::open(path).ok());
    // Notify the agent first; otherwise it would repair the rules that are removed below.
    let request = FromPlugin::Del {
        version: handoff::VERSION,
        attachment: attachment(&environment),
        pod: kubernetes_pod(&environment),
    };
    let socket = config.and_then(|c| c.agent_socket);
    match ask(socket.as_deref(), DEADLINE, &request, netns.as_ref()) {
        Ok(FromAgent::Skip { reason }) => {
            return crate::report(format_args!("rules of the pod kept: {reason}"));
        }
        Ok(_) => {}
        Err(e) => crate::report(format_args!(
            "cannot notify the node agent of this DEL: {e}"
        )),
    }
    if let Some(netns) = netns {
        remove_rules(&netns);
    }
}

fn remove_rules(netns: &NetNs) {
    // The plugin's own namespace is the node's, not a pod's.
    if NetNs::current().map_or(true, |own| own.id() == netns.id()) {
        return;
    }
    match netns.run(redirect::remove) {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => crate::report(format_args!("{}: {e}", e.code())),
        Err(e) => crate::report(e),
    }
}
