//! Where certificates come from. Another source, such as a SPIRE agent, would be another variant: it is asked for an
//! identity and hands out an [`Issued`].

use mesh::Identity;

use super::issued::Issued;
use super::local_ca::{CaError, LocalCa};
use crate::control::CaClient;

/// Where certificates come from.
pub(crate) enum Source {
    /// An authority in a folder.
    Folder(LocalCa),
    /// istiod, or what speaks like it.
    ControlPlane(CaClient),
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error(transparent)]
    Folder(#[from] CaError),
    #[error(transparent)]
    Connect(#[from] crate::control::ConnectError),
    #[error(transparent)]
    Token(#[from] crate::control::TokenError),
    #[error("{code}: {0}", code = error_code::control::CA_REFUSED)]
    Refused(String),
    #[error("{code}: {0}", code = error_code::control::CA_ANSWER)]
    Answer(String),
}

impl Source {
    /// A fresh key and a certificate for it. It is not checked yet.
    pub(crate) async fn issue(&self, identity: &Identity) -> Result<Issued, IssueError> {
        match self {
            Self::Folder(ca) => Ok(ca.issue(identity)?),
            Self::ControlPlane(client) => client.create(identity).await,
        }
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Folder(_) => "local certificate authority".to_owned(),
            Self::ControlPlane(client) => client.address().to_string(),
        }
    }
}
