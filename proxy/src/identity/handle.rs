//! How a pod's connections get at its certificate, from any thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::Identity;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::timeout;

use super::credentials::Credentials;

/// How long a connection waits for the first certificate of its pod.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is held for an identity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    /// The certificate; perhaps it has expired.
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// Why there is none, or no newer one.
    pub(crate) trouble: Option<String>,
}

/// A pod's way to its certificate.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// Whose it is.
    pub(crate) identity: Identity,
    held: watch::Receiver<Held>,
    urgent: UnboundedSender<Identity>,
}

/// There is no certificate that is valid now. The reason follows, if it is known.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NoCredentials {
    #[error("there is no certificate of {0} yet{1}")]
    NotYet(Identity, String),
    #[error("the certificate of {0} has expired{1}")]
    Expired(Identity, String),
}

impl Held {
    /// The certificate, if it is valid at this time.
    pub(crate) fn valid(&self, now: SystemTime) -> Option<&Arc<Credentials>> {
        self.credentials.as_ref().filter(|c| now < c.validity.not_after)
    }
}

impl Handle {
    pub(super) fn new(identity: Identity, held: watch::Receiver<Held>, urgent: UnboundedSender<Identity>) -> Self {
        Self { identity, held, urgent }
    }

    /// The certificate, which is waited for if it must be: for a moment, unless it is known that there is trouble.
    pub(crate) async fn get(&self) -> Result<Arc<Credentials>, NoCredentials> {
        let now = SystemTime::now();
        if let Some(credentials) = self.held.borrow().valid(now) {
            return Ok(credentials.clone());
        }
        let _ = self.urgent.send(self.identity.clone()); // the control thread ends with the process
        let mut held = self.held.clone();
        let found = timeout(PATIENCE, held.wait_for(|h| h.valid(now).is_some() || h.trouble.is_some())).await;
        let held = match found {
            Ok(Ok(held)) => held.clone(),
            _ => self.held.borrow().clone(),
        };
        held.valid(now).cloned().ok_or_else(|| self.none(&held))
    }

    /// What is held now.
    pub(crate) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    fn none(&self, held: &Held) -> NoCredentials {
        let why = held.trouble.as_ref().map_or_else(String::new, |t| format!(": {t}"));
        match held.credentials {
            Some(_) => NoCredentials::Expired(self.identity.clone(), why),
            None => NoCredentials::NotYet(self.identity.clone(), why),
        }
    }
}
