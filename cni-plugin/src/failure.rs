//! Errors of the plugin, and their representation as CNI errors.

use std::io;

use cni_spec::{CniError, ConfigError, EnvironmentError, PrevResultError, codes};
use error_code::{ErrorCode, cni, printable};
use handoff::{FromAgent, PodRef};
use netns::NetNsError;
use redirect::RedirectError;

/// An error that the agent reported.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {why}")]
pub(crate) struct AgentError {
    /// Underpass error code.
    pub(crate) code: String,
    why: String,
    next_step: String,
    /// Whether a later retry may succeed.
    pub(crate) retry: bool,
}

/// Why a CNI command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("cannot read standard input: {0}")]
    Stdin(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the configuration has no prevResult")]
    NoPrevResult,
    #[error(transparent)]
    PrevResult(#[from] PrevResultError),
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("CNI_NETNS {0} is the plugin's own network namespace, not a pod's")]
    OwnNamespace(String),
    #[error("cannot reach the node agent on {socket}: {source}")]
    AgentAbsent { socket: String, source: io::Error },
    #[error(
        "pod {pod} waits for the node agent, which decides whether it belongs to the mesh: {why}"
    )]
    PodWaits { pod: String, why: Box<Failure> },
    #[error("untrusted process on {socket}: it runs as uid {uid}, but the node agent runs as root")]
    UntrustedAgent { socket: String, uid: u32 },
    #[error("the node agent did not answer within {0} ms")]
    AgentSilent(u128),
    #[error("the node agent closed the connection without an answer")]
    AgentClosed,
    #[error("lost the connection to the node agent: {0}")]
    AgentBroke(#[source] io::Error),
    #[error("unexpected reply from the node agent: {0}")]
    UnexpectedReply(String),
    #[error("{0}")]
    Refused(AgentError),
    #[error("{code}: {0}", code = .0.code())]
    Install(#[from] RedirectError),
    #[error("the pod failed verification: {0}")]
    Check(AgentError),
    #[error("{0}")]
    NotAvailable(AgentError),
    #[error("{0}")]
    AgentUnavailable(Box<Failure>),
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// The failure that an unsuccessful answer means: the agent's error, as the variant of the
    /// command, or an unexpected reply.
    pub(crate) fn from_answer(answer: FromAgent, reported: fn(AgentError) -> Self) -> Self {
        match answer {
            FromAgent::Failed {
                code,
                why,
                next_step,
                retry,
            } => reported(AgentError {
                code,
                why,
                next_step,
                retry,
            }),
            other => Self::UnexpectedReply(format!("{other:?}")),
        }
    }

    /// The failure to reach the agent, as the reason why a pod does not start.
    pub(crate) fn delays(self, pod: &PodRef) -> Self {
        Self::PodWaits {
            pod: format!("{}/{}", pod.namespace, pod.name),
            why: Box::new(self),
        }
    }

    /// The CNI error number and the Underpass error code.
    pub(crate) fn codes(&self) -> (u32, &'static ErrorCode) {
        match self {
            Self::Environment(_) => (codes::INVALID_ENVIRONMENT, &cni::ENVIRONMENT),
            Self::Stdin(_) => (codes::IO, &cni::STDIN),
            Self::Config(ConfigError::Decode(_)) => (codes::DECODE, &cni::STDIN),
            Self::Config(ConfigError::Version(_) | ConfigError::Command { .. }) => {
                (codes::INCOMPATIBLE_VERSION, &cni::VERSION)
            }
            Self::Config(ConfigError::Name(_)) => (codes::INVALID_CONFIG, &cni::CONFIG),
            Self::NoPrevResult => (codes::INVALID_CONFIG, &cni::NO_PREV_RESULT),
            Self::PrevResult(_) => (codes::DECODE, &cni::NO_PREV_RESULT),
            Self::NetNs(_) | Self::OwnNamespace(_) => (codes::INVALID_NETNS, &cni::NETNS),
            Self::AgentAbsent { .. } => (codes::TRY_AGAIN, &cni::AGENT_UNAVAILABLE),
            Self::AgentSilent(_) | Self::AgentClosed | Self::AgentBroke(_) => {
                (codes::TRY_AGAIN, &cni::AGENT_TIMEOUT)
            }
            Self::UnexpectedReply(_) | Self::UntrustedAgent { .. } => {
                (codes::NOT_ENROLLED, &cni::UNEXPECTED_REPLY)
            }
            Self::Refused(e) if e.retry => (codes::TRY_AGAIN, &cni::REFUSED),
            Self::Refused(_) => (codes::NOT_ENROLLED, &cni::REFUSED),
            Self::Check(_) => (codes::CHECK_FAILED, &cni::CHECK),
            // The agent runs without a proxy: running pods may have lost connectivity.
            Self::NotAvailable(_) => (codes::NOT_AVAILABLE_LIMITED, &cni::STATUS),
            Self::PodWaits { why, .. } => why.codes(),
            Self::AgentUnavailable(why) => (codes::NOT_AVAILABLE, why.codes().1),
            Self::Install(_) => (codes::NOT_ENROLLED, &cni::INSTALL),
            Self::Internal(_) => (999, &cni::INTERNAL),
        }
    }

    /// The error in the JSON format of the CNI specification.
    pub(crate) fn to_json(&self, version: &str) -> String {
        let (number, code) = self.codes();
        let next_step = match self {
            Self::Refused(e) | Self::Check(e) | Self::NotAvailable(e) => &e.next_step,
            _ => code.next_step,
        };
        // Runtimes print it in logs and events.
        let escape = |text: String| printable::line(&text).into_owned();
        let error = CniError {
            cni_version: version.to_owned(),
            code: number,
            msg: escape(format!("{code}: {self}")),
            details: escape(format!(
                "{} {} Next step: {next_step}",
                code.what, code.cause
            )),
        };
        serde_json::to_string(&error)
            .unwrap_or_else(|_| format!("{{\"code\":{number},\"msg\":\"{code}\"}}"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cni_spec::Command;
    use redirect::Plan;
    use serde_json::Value;

    use super::*;

    pub(crate) fn failed(retry: bool) -> FromAgent {
        FromAgent::Failed {
            code: "UP-AGENT-003".to_owned(),
            why: "the pod is unknown".to_owned(),
            next_step: "Wait.".to_owned(),
            retry,
        }
    }

    pub(crate) fn skip() -> FromAgent {
        FromAgent::Skip {
            reason: "no label".to_owned(),
        }
    }

    pub(crate) fn enrol() -> FromAgent {
        FromAgent::Enrol {
            plan: Box::new(Plan::for_pod([])),
        }
    }

    fn io() -> io::Error {
        io::Error::from_raw_os_error(2)
    }

    fn config_error(command: Command, text: &str) -> Failure {
        let error = cni_spec::Config::parse(command, text.as_bytes()).unwrap_err();
        error.into()
    }

    /// Every failure, with its CNI error number and Underpass error code.
    fn all() -> Vec<(Failure, u32, &'static str)> {
        let unavailable = |why| Failure::AgentUnavailable(Box::new(why));
        let absent = || Failure::AgentAbsent {
            socket: "/run/a.sock".to_owned(),
            source: io(),
        };
        let add_error = |text| config_error(Command::Add, text);
        let pod = PodRef {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: None,
        };
        let untrusted = Failure::UntrustedAgent {
            socket: "/run/a.sock".to_owned(),
            uid: 7,
        };
        vec![
            (
                EnvironmentError::Missing(vec!["CNI_NETNS"]).into(),
                4,
                "UP-CNI-001",
            ),
            (Failure::Stdin(io()), 5, "UP-CNI-002"),
            (add_error("{"), 6, "UP-CNI-002"),
            (add_error(r#"{"cniVersion":"1.2.0"}"#), 1, "UP-CNI-003"),
            (config_error(Command::Check, "{}"), 1, "UP-CNI-003"),
            (add_error("{}"), 7, "UP-CNI-004"),
            (Failure::NoPrevResult, 7, "UP-CNI-005"),
            (PrevResultError::NotAnObject.into(), 6, "UP-CNI-005"),
            (NetNsError::Enter(io()).into(), 8, "UP-CNI-006"),
            (Failure::OwnNamespace("/x".to_owned()), 8, "UP-CNI-006"),
            (absent(), 11, "UP-CNI-007"),
            (absent().delays(&pod), 11, "UP-CNI-007"),
            (Failure::AgentSilent(9), 11, "UP-CNI-008"),
            (Failure::AgentClosed, 11, "UP-CNI-008"),
            (Failure::AgentBroke(io()), 11, "UP-CNI-008"),
            (untrusted, 100, "UP-CNI-009"),
            (
                Failure::UnexpectedReply("Gone".to_owned()),
                100,
                "UP-CNI-009",
            ),
            (
                Failure::from_answer(failed(true), Failure::Refused),
                11,
                "UP-CNI-010",
            ),
            (
                Failure::from_answer(failed(false), Failure::Refused),
                100,
                "UP-CNI-010",
            ),
            (RedirectError::NoAddress.into(), 100, "UP-CNI-011"),
            (Failure::Internal("x".to_owned()), 999, "UP-CNI-012"),
            (
                Failure::from_answer(failed(true), Failure::Check),
                101,
                "UP-CNI-013",
            ),
            (
                Failure::from_answer(failed(true), Failure::NotAvailable),
                51,
                "UP-CNI-014",
            ),
            (unavailable(absent()), 50, "UP-CNI-007"),
            (unavailable(Failure::AgentClosed), 50, "UP-CNI-008"),
        ]
    }

    #[test]
    fn every_failure_has_a_number_a_code_and_a_next_step() {
        for (failure, number, code) in all() {
            let json: Value = serde_json::from_str(&failure.to_json("1.0.0")).unwrap();
            assert_eq!(json["cniVersion"], "1.0.0");
            assert_eq!(json["code"], number, "{failure:?}");
            assert_eq!(json["msg"], format!("{code}: {failure}"));
            let documented = failure.codes().1;
            let next_step = match &failure {
                Failure::Refused(_) | Failure::Check(_) | Failure::NotAvailable(_) => "Wait.",
                _ => documented.next_step,
            };
            let details = json["details"].as_str().unwrap();
            assert!(details.starts_with(documented.what), "{details}");
            assert!(
                details.ends_with(&format!("Next step: {next_step}")),
                "{details}"
            );
        }
    }

    #[test]
    fn errors_of_the_agent_keep_its_code_and_reason() {
        let text = |reported| Failure::from_answer(failed(true), reported).to_string();
        assert_eq!(text(Failure::Refused), "UP-AGENT-003: the pod is unknown");
        assert_eq!(
            text(Failure::Check),
            "the pod failed verification: UP-AGENT-003: the pod is unknown"
        );
    }
}
