//! CHECK: verifies that a pod is as ADD left it.

use cni_spec::Command;
use handoff::{FromAgent, FromPlugin};

use crate::add::pod_namespace;
use crate::agent::ask;
use crate::call::{Call, attachment};
use crate::excluded::Excluded;
use crate::failure::Failure;

/// Runs a CHECK.
pub(crate) fn run(input: &[u8]) -> Result<(), Failure> {
    if Excluded::read(crate::variable, input).is_some() {
        return Ok(());
    }
    let call = Call::parse(Command::Check, crate::variable, input)?;
    let netns = pod_namespace(&call.environment)?;
    let Some(pod) = call.mesh_candidate() else {
        return Ok(());
    };
    let request = FromPlugin::Check {
        version: handoff::VERSION,
        attachment: attachment(&call.environment),
        pod,
    };
    judge(ask(
        call.config.agent_socket.as_deref(),
        call.limit(),
        &request,
        Some(&netns),
    )?)
}

/// The result of a CHECK, from the agent's answer.
fn judge(answer: FromAgent) -> Result<(), Failure> {
    match answer {
        FromAgent::Ready | FromAgent::Skip { .. } => Ok(()),
        other => Err(Failure::from_answer(other, Failure::Check)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::tests::{enrol, failed, skip};

    #[test]
    fn only_a_ready_or_skipped_pod_passes() {
        assert!(judge(FromAgent::Ready).is_ok() && judge(skip()).is_ok());
        let error = judge(failed(true)).unwrap_err();
        assert!(matches!(&error, Failure::Check(e) if e.code == "UP-AGENT-003"));
        for unexpected in [enrol(), FromAgent::Gone] {
            assert!(matches!(
                judge(unexpected),
                Err(Failure::UnexpectedReply(_))
            ));
        }
    }
}
