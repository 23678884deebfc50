//! STATUS: checks whether an ADD can succeed now.

use std::time::Duration;

use cni_spec::{Command, Config, StatusRequirement};
use handoff::{FromAgent, FromPlugin};

use crate::agent::ask;
use crate::failure::Failure;

/// Time limit; the agent answers from memory.
const DEADLINE: Duration = Duration::from_secs(1);

/// Runs a STATUS.
pub(crate) fn run(input: &[u8]) -> Result<(), Failure> {
    let config = Config::parse(Command::Status, input)?;
    if config.status_needs == StatusRequirement::Nothing {
        return Ok(());
    }
    let request = FromPlugin::Status {
        version: handoff::VERSION,
    };
    judge(ask(
        config.agent_socket.as_deref(),
        DEADLINE,
        &request,
        None,
    ))
}

/// The result of a STATUS, from the agent's answer.
fn judge(answer: Result<FromAgent, Failure>) -> Result<(), Failure> {
    match answer {
        Ok(FromAgent::Ready) => Ok(()),
        Ok(other) => Err(Failure::from_answer(other, Failure::NotAvailable)),
        Err(why) => Err(Failure::AgentUnavailable(Box::new(why))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::tests::{enrol, failed, skip};

    #[test]
    fn only_a_ready_agent_is_available() {
        assert!(judge(Ok(FromAgent::Ready)).is_ok());
        let error = judge(Ok(failed(true))).unwrap_err();
        assert!(matches!(&error, Failure::NotAvailable(e) if e.code == "UP-AGENT-003"));
        let error = judge(Err(Failure::AgentClosed)).unwrap_err();
        assert!(matches!(error, Failure::AgentUnavailable(_)));
        for unexpected in [enrol(), skip(), FromAgent::Gone] {
            assert!(matches!(
                judge(Ok(unexpected)),
                Err(Failure::UnexpectedReply(_))
            ));
        }
    }

    #[test]
    fn nothing_is_required_where_the_configuration_says_so() {
        let needs = |needs: &str| {
            let config = json!({
                "cniVersion": "1.1.0",
                "name": "n",
                "agentSocket": "/nonexistent/a.sock",
                "statusNeeds": needs,
            });
            run(config.to_string().as_bytes())
        };
        assert!(needs("nothing").is_ok());
        assert!(matches!(needs("proxy"), Err(Failure::AgentUnavailable(_))));
        assert!(matches!(needs("all"), Err(Failure::Config(_))));
    }
}
