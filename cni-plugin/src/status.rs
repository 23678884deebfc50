//! STATUS: whether an ADD could succeed now.

use std::time::Duration;

use cni_spec::{Config, StatusNeeds};
use handoff::{FromAgent, FromPlugin};

use crate::agent::Agent;
use crate::failure::Failure;

/// The agent answers from memory.
const DEADLINE: Duration = Duration::from_secs(1);

/// Runs a STATUS.
pub(crate) fn run(input: &[u8]) -> Result<(), Failure> {
    let config = Config::parse(input)?;
    if config.status_needs == StatusNeeds::Nothing {
        return Ok(());
    }
    let answer = ask(&config).map_err(|why| Failure::NobodyAnswers(Box::new(why)))?;
    match answer {
        FromAgent::Ready => Ok(()),
        FromAgent::Failed { code, why, next_step, .. } => Err(Failure::NotAvailable { code, why, next_step }),
        other => Err(Failure::AgentConfused(format!("{other:?} is no answer here"))),
    }
}

fn ask(config: &Config) -> Result<FromAgent, Failure> {
    let agent = Agent::connect(config.agent_socket.as_deref().unwrap_or(handoff::DEFAULT_SOCKET), DEADLINE)?;
    agent.send(&FromPlugin::Status { version: handoff::VERSION }, None)?;
    agent.receive()
}
