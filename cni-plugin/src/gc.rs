//! GC: attachments that the runtime does not know any more are forgotten.

use std::time::Duration;

use cni_spec::Config;
use handoff::{Attachment, FromAgent, FromPlugin};

use crate::agent::Agent;
use crate::failure::Failure;

const DEADLINE: Duration = Duration::from_secs(5);

/// Runs a GC. A runtime that names no list at all asks for nothing.
pub(crate) fn run(input: &[u8]) -> Result<(), Failure> {
    let config = Config::parse(input)?;
    let Some(valid) = config.valid_attachments.or(config.attachments) else { return Ok(()) };
    let valid = valid.into_iter().map(|a| Attachment { container_id: a.container_id, ifname: a.ifname }).collect();
    let agent = Agent::connect(config.agent_socket.as_deref().unwrap_or(handoff::DEFAULT_SOCKET), DEADLINE)?;
    agent.send(&FromPlugin::Gc { version: handoff::VERSION, valid }, None)?;
    match agent.receive()? {
        FromAgent::Gone => Ok(()),
        FromAgent::Failed { code, why, next_step, retry } => Err(Failure::Refused { code, why, next_step, retry }),
        other => Err(Failure::AgentConfused(format!("{other:?} is no answer here"))),
    }
}
