//! Everything that an ADD can end in, and how the runtime is told.

use std::io;

use cni_spec::{CniError, ConfigError, EnvironmentError, PrevResultError, codes};
use error_code::{ErrorCode, cni};
use netns::NetNsError;
use redirect::RedirectError;

/// Why an ADD failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("standard input cannot be read: {0}")]
    Stdin(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the configuration has no prevResult")]
    NoPrevResult,
    #[error(transparent)]
    PrevResult(#[from] PrevResultError),
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("CNI_NETNS {0} is the plugin's own network namespace, the node's")]
    OwnNamespace(String),
    #[error("the node agent cannot be reached on {socket}: {source}")]
    AgentAbsent { socket: String, source: io::Error },
    #[error("the process on {socket} runs as user {uid}, which is not the node agent's")]
    AgentIsNobody { socket: String, uid: u32 },
    #[error("the node agent did not answer within {0} ms")]
    AgentSilent(u128),
    #[error("the node agent closed the connection before it had finished")]
    AgentClosed,
    #[error("the connection to the node agent broke: {0}")]
    AgentBroke(#[source] io::Error),
    #[error("the node agent sent something unexpected: {0}")]
    AgentConfused(String),
    #[error("{code}: {why}")]
    Refused { code: String, why: String, next_step: String, retry: bool },
    #[error("{code}: {0}", code = .0.code())]
    Install(#[from] RedirectError),
    #[error("the pod is not as it should be: {code}: {why}")]
    Check { code: String, why: String, next_step: String },
    #[error("{code}: {why}")]
    NotAvailable { code: String, why: String, next_step: String },
    #[error("{0}")]
    NobodyAnswers(Box<Failure>),
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// The error number for the runtime, and our own code.
    fn codes(&self) -> (u32, &'static ErrorCode) {
        match self {
            Self::Environment(_) => (codes::INVALID_ENVIRONMENT, &cni::ENVIRONMENT),
            Self::Stdin(_) => (codes::IO, &cni::STDIN),
            Self::Config(ConfigError::Decode(_)) => (codes::DECODE, &cni::STDIN),
            Self::Config(ConfigError::Version(_)) => (codes::INCOMPATIBLE_VERSION, &cni::VERSION),
            Self::Config(ConfigError::Name(_)) => (codes::INVALID_CONFIG, &cni::CONFIG),
            Self::NoPrevResult => (codes::INVALID_CONFIG, &cni::NO_PREV_RESULT),
            Self::PrevResult(_) => (codes::DECODE, &cni::NO_PREV_RESULT),
            Self::NetNs(_) | Self::OwnNamespace(_) => (codes::INVALID_NETNS, &cni::NETNS),
            Self::AgentAbsent { .. } => (codes::TRY_AGAIN, &cni::AGENT_ABSENT),
            Self::AgentSilent(_) | Self::AgentClosed | Self::AgentBroke(_) => (codes::TRY_AGAIN, &cni::AGENT_SILENT),
            Self::AgentConfused(_) | Self::AgentIsNobody { .. } => (codes::NOT_ENROLLED, &cni::AGENT_CONFUSED),
            Self::Refused { retry: true, .. } => (codes::TRY_AGAIN, &cni::REFUSED),
            Self::Refused { retry: false, .. } => (codes::NOT_ENROLLED, &cni::REFUSED),
            Self::Check { .. } => (codes::CHECK_FAILED, &cni::CHECK),
            // The agent is there and says that no proxy is: pods that run may have lost connectivity.
            Self::NotAvailable { .. } => (codes::NOT_AVAILABLE_LIMITED, &cni::STATUS),
            Self::NobodyAnswers(why) => (codes::NOT_AVAILABLE, why.codes().1),
            Self::Install(_) => (codes::NOT_ENROLLED, &cni::INSTALL),
            Self::Internal(_) => (999, &cni::INTERNAL),
        }
    }

    /// The error as the specification wants it.
    pub(crate) fn to_json(&self, version: &str) -> String {
        let (code, ours) = self.codes();
        let next_step = match self {
            Self::Refused { next_step, .. } | Self::Check { next_step, .. } | Self::NotAvailable { next_step, .. } => {
                next_step
            }
            _ => ours.next_step,
        };
        let error = CniError {
            cni_version: version.to_owned(),
            code,
            msg: format!("{ours}: {self}"),
            details: format!("{} {} Next step: {next_step}", ours.what, ours.cause),
        };
        serde_json::to_string(&error).unwrap_or_else(|_| format!("{{\"code\":{code},\"msg\":\"{ours}\"}}"))
    }
}
