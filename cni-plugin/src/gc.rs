//! GC: removes attachments that the runtime no longer has.

use std::time::Duration;

use cni_spec::{Command, Config};
use handoff::{Attachment, FromAgent, FromPlugin};

use crate::agent::ask;
use crate::failure::Failure;

const DEADLINE: Duration = Duration::from_secs(5);

/// Runs a GC. Does nothing if the configuration has no list of valid attachments.
pub(crate) fn run(input: &[u8]) -> Result<(), Failure> {
    let mut config = Config::parse(Command::Gc, input)?;
    let Some(valid) = valid_attachments(&mut config) else {
        return Ok(());
    };
    let request = FromPlugin::Gc {
        version: handoff::VERSION,
        valid,
    };
    judge(ask(
        config.agent_socket.as_deref(),
        DEADLINE,
        &request,
        None,
    )?)
}

/// The attachments that are still in use, if the configuration lists them.
fn valid_attachments(config: &mut Config) -> Option<Vec<Attachment>> {
    let listed = config
        .valid_attachments
        .take()
        .or(config.attachments.take())?;
    let valid = listed.into_iter().map(|a| Attachment {
        container_id: a.container_id,
        ifname: a.ifname,
    });
    Some(valid.collect())
}

/// The result of a GC, from the agent's answer.
fn judge(answer: FromAgent) -> Result<(), Failure> {
    match answer {
        FromAgent::Gone => Ok(()),
        other => Err(Failure::from_answer(other, Failure::Refused)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::tests::{enrol, failed, skip};

    #[test]
    fn both_names_of_the_list_are_read_and_the_current_one_wins() {
        let valid = |lists: serde_json::Value| {
            let mut text = json!({ "cniVersion": "1.1.0", "name": "n" });
            for (key, ids) in lists.as_object().unwrap() {
                let entry = |id| json!({ "containerID": id, "ifname": "eth0" });
                let all: Vec<_> = ids.as_array().unwrap().iter().map(entry).collect();
                text[key] = json!(all);
            }
            let mut config = Config::parse(Command::Gc, text.to_string().as_bytes()).unwrap();
            let found = valid_attachments(&mut config)?;
            Some(
                found
                    .into_iter()
                    .map(|a| a.container_id)
                    .collect::<Vec<_>>(),
            )
        };
        let (current, early) = ("cni.dev/valid-attachments", "cni.dev/attachments");
        assert_eq!(valid(json!({})), None);
        assert_eq!(valid(json!({ current: [] })), Some(vec![]));
        assert_eq!(valid(json!({ early: ["a"] })), Some(vec!["a".to_owned()]));
        assert_eq!(
            valid(json!({ early: ["a"], current: ["b"] })),
            Some(vec!["b".to_owned()])
        );
    }

    #[test]
    fn only_gone_completes_a_gc() {
        assert!(judge(FromAgent::Gone).is_ok());
        let error = judge(failed(false)).unwrap_err();
        assert!(matches!(&error, Failure::Refused(e) if !e.retry));
        for unexpected in [enrol(), skip(), FromAgent::Ready] {
            assert!(matches!(
                judge(unexpected),
                Err(Failure::UnexpectedReply(_))
            ));
        }
    }
}
