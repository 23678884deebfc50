//! Why a pod is not enrolled, as the plugin and the runtime are told.

use std::net::IpAddr;

use error_code::{ErrorCode, agent as codes};
use handoff::FromAgent;
use redirect::{AnnotationError, RedirectError};

/// Why a pod is not enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Protocol(String),
    #[error("{0}")]
    NetNs(String),
    #[error("{0}")]
    UnknownPod(String),
    #[error("the pod has {pod:?}, and the mesh knows it by {mesh:?}")]
    Address { pod: Vec<IpAddr>, mesh: Vec<IpAddr> },
    #[error("{0}")]
    NotAsPlanned(String),
    #[error("the rules cannot be read back: {code}: {0}", code = .0.code())]
    ReadBack(#[from] RedirectError),
    #[error("{code}: {0}", code = .0.code())]
    Redirect(RedirectError),
    #[error("no proxy connected within {0} ms")]
    ProxyAbsent(u128),
    #[error("no proxy answered within {0} ms")]
    ProxySilent(u128),
    #[error("the proxy refused: {0}")]
    ProxyRefused(String),
    #[error("the agent's state cannot be written: {0}")]
    State(#[source] std::io::Error),
    #[error("{0}")]
    Foreign(String),
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error("{0}")]
    Names(String),
    #[error("no proxy is connected")]
    NoProxy,
    #[error("another ADD of this pod, container or namespace is under way")]
    Busy,
    #[error("{0}")]
    NotEnrolled(String),
    #[error("{0}")]
    ApiAway(String),
    #[error("{0}")]
    PodGone(String),
    #[error("no process of the pod was found in {0}")]
    NotFound(String),
    /// The plugin has gone; nobody is there to be told.
    #[error("the plugin gave up before the pod was ready")]
    PluginGone,
}

impl Refusal {
    pub(crate) fn code(&self) -> &'static ErrorCode {
        match self {
            Self::Protocol(_) | Self::PluginGone => &codes::PROTOCOL,
            Self::NetNs(_) => &codes::NETNS,
            Self::UnknownPod(_) => &codes::UNKNOWN_POD,
            Self::Address { .. } => &codes::ADDRESS,
            Self::NotAsPlanned(_) | Self::ReadBack(_) | Self::Redirect(_) => &codes::NOT_AS_PLANNED,
            Self::ProxyAbsent(_) | Self::NoProxy => &codes::PROXY_ABSENT,
            Self::NotEnrolled(_) => &codes::NOT_VERIFIED,
            Self::ProxySilent(_) => &codes::PROXY_SILENT,
            Self::ProxyRefused(_) => &codes::PROXY_REFUSED,
            Self::State(_) => &codes::STATE,
            Self::Foreign(_) => &codes::FOREIGN,
            Self::Annotation(_) => &codes::ANNOTATION,
            Self::Names(_) => &codes::NAMES,
            Self::Busy => &codes::BUSY,
            Self::ApiAway(_) => &codes::API_AWAY,
            Self::PodGone(_) => &codes::POD_GONE,
            Self::NotFound(_) => &codes::NOT_FOUND,
        }
    }

    /// Whether trying again later can help without anybody correcting something.
    fn retry(&self) -> bool {
        !matches!(
            self,
            Self::Protocol(_) | Self::NetNs(_) | Self::Address { .. } | Self::Annotation(_) | Self::Names(_)
        )
    }

    /// The answer to the plugin.
    pub(crate) fn message(&self) -> FromAgent {
        let code = self.code();
        FromAgent::Failed {
            code: code.code.to_owned(),
            why: self.to_string(),
            next_step: code.next_step.to_owned(),
            retry: self.retry(),
        }
    }

    /// As a line of the log and of the status.
    pub(crate) fn explained(&self) -> String {
        let code = self.code();
        format!("{code}: {self}. Next step: {}", code.next_step)
    }

    /// What metrics count it under.
    pub(crate) fn outcome(&self) -> &'static str {
        self.code().code
    }
}
