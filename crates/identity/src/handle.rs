//! Access to a pod's certificate from any thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::Identity;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::credentials::Credentials;
use crate::issuer::IssueError;

/// How long a connection waits for a certificate.
const TIMEOUT: Duration = Duration::from_secs(5);

/// State of the certificate of an identity.
#[derive(Debug, Clone, Default)]
pub struct CertificateState {
    /// The most recent certificate, which may have expired.
    pub credentials: Option<Arc<Credentials>>,
    /// Error of the last request, if it failed.
    pub last_error: Option<Arc<IssueError>>,
}

/// A handle to the certificate of an identity.
#[derive(Debug, Clone)]
pub struct CertificateHandle {
    /// The identity of the certificate.
    pub identity: Identity,
    pub(super) state: watch::Receiver<CertificateState>,
    pub(super) urgent: UnboundedSender<Identity>,
}

/// There is no valid certificate. The message ends with the error of the last request, if there was
/// one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoCredentials {
    /// No certificate was issued yet.
    #[error("no certificate for {0} yet{reason}", reason = reason(.1))]
    NotYet(Identity, Option<Arc<IssueError>>),
    /// The certificate has expired and was not renewed.
    #[error("the certificate for {0} has expired{reason}", reason = reason(.1))]
    Expired(Identity, Option<Arc<IssueError>>),
}

fn reason(last_error: &Option<Arc<IssueError>>) -> String {
    last_error
        .as_ref()
        .map_or_else(String::new, |e| format!(": {e}"))
}

impl CertificateState {
    /// The certificate, unless it has expired at `now`.
    pub fn valid(&self, now: SystemTime) -> Option<&Arc<Credentials>> {
        self.credentials
            .as_ref()
            .filter(|c| now < c.validity.not_after)
    }
}

impl CertificateHandle {
    /// Returns the certificate. Without a valid one, waits for it unless the last request failed,
    /// at most 5 s.
    pub async fn get(&self) -> Result<Arc<Credentials>, NoCredentials> {
        let now = SystemTime::now();
        if let Some(credentials) = self.state.borrow().valid(now) {
            return Ok(credentials.clone());
        }
        let _ = self.urgent.send(self.identity.clone()); // fails only when the process exits
        let mut receiver = self.state.clone();
        let settled = receiver.wait_for(|s| s.valid(now).is_some() || s.last_error.is_some());
        let state = match timeout(TIMEOUT, settled).await {
            Ok(Ok(state)) => state.clone(),
            _ => self.state(),
        };
        state.valid(now).cloned().ok_or_else(|| self.error(&state))
    }

    /// The current state.
    pub fn state(&self) -> CertificateState {
        self.state.borrow().clone()
    }

    fn error(&self, state: &CertificateState) -> NoCredentials {
        let last_error = state.last_error.clone();
        match state.credentials {
            Some(_) => NoCredentials::Expired(self.identity.clone(), last_error),
            None => NoCredentials::NotYet(self.identity.clone(), last_error),
        }
    }
}
