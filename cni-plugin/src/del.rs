//! DEL: everything of ours leaves the pod, and nothing can make it fail. A DEL that fails wedges the pod's deletion.

use std::time::Duration;

use cni_spec::{Config, Environment};
use handoff::{Attachment, FromPlugin};
use netns::NetNs;

use crate::add::kubernetes_pod;
use crate::agent::Agent;

/// How long the agent is waited for; it finds out by itself otherwise.
const DEADLINE: Duration = Duration::from_secs(1);

/// Runs a DEL.
pub(crate) fn run(input: &[u8]) {
    let environment = Environment::for_del(crate::variable);
    let config = Config::parse_leniently(input).ok();
    let netns = environment.netns.as_ref().and_then(|path| NetNs::open(path).ok());
    let socket = config.and_then(|c| c.agent_socket);
    // First, for an agent that does not know it yet would repair what is removed.
    tell_agent(socket.as_deref().unwrap_or(handoff::DEFAULT_SOCKET), environment);
    if let Some(netns) = netns {
        leave(&netns);
    }
}

fn leave(netns: &NetNs) {
    // Never our own namespace: what is there is not a pod's.
    if NetNs::current().map_or(true, |own| own.id() == netns.id()) {
        return;
    }
    match netns.run(redirect::remove) {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => eprintln!("{}: {e}", e.code()),
        Err(e) => eprintln!("{e}"),
    }
}

fn tell_agent(socket: &str, environment: Environment) {
    let pod = kubernetes_pod(&environment);
    let attachment = Attachment { container_id: environment.container_id, ifname: environment.ifname };
    let farewell = FromPlugin::Del { version: handoff::VERSION, attachment, pod };
    let told = Agent::connect(socket, DEADLINE).and_then(|agent| {
        agent.send(&farewell, None)?;
        agent.receive()
    });
    if let Err(e) = told {
        eprintln!("the agent does not know of this DEL yet: {e}");
    }
}
