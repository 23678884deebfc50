//! The certificates of this node, one per identity: requested when the first pod with that identity
//! joins, renewed while there is one, and dropped when the last one leaves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::Identity;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use crate::credentials::Credentials;
use crate::handle::{CertificateHandle, CertificateState};
use crate::issued::{IssuedCertificate, UnusableCertificate};
use crate::issuer::{IssueError, Issuer};
use crate::schedule::Schedule;
use crate::trust::Trust;
use crate::trust_report::TrustReport;
use crate::wall_clock::{ClockShift, WallClock};

/// Longest time between checks of the schedule, because the clock may be set.
const MAX_SLEEP: Duration = Duration::from_secs(2);

/// All certificates of this node. Lives on the control thread.
pub struct Certificates {
    issuer: Box<dyn Issuer>,
    trust: Arc<Trust>,
    schedule: RefCell<Schedule>,
    states: RefCell<BTreeMap<Identity, watch::Sender<CertificateState>>>,
    /// Roots of the most recently issued certificate.
    roots: RefCell<Vec<CertificateDer<'static>>>,
    schedule_changed: Notify,
    urgent: UnboundedSender<Identity>,
    urgent_requests: RefCell<Option<UnboundedReceiver<Identity>>>,
}

/// A pod's claim to a certificate. The certificate is dropped with its last claim.
pub struct Claim {
    certificates: Rc<Certificates>,
    identity: Identity,
}

impl Certificates {
    /// Creates an empty set whose certificates come from `issuer`.
    pub fn new(issuer: Box<dyn Issuer>, trust: Arc<Trust>) -> Self {
        let (urgent, urgent_requests) = unbounded_channel();
        Self {
            issuer,
            trust,
            schedule: RefCell::default(),
            states: RefCell::default(),
            roots: RefCell::default(),
            schedule_changed: Notify::new(),
            urgent,
            urgent_requests: RefCell::new(Some(urgent_requests)),
        }
    }

    /// Claims the certificate of an identity for a pod; the first claim requests it at once.
    pub fn claim(self: &Rc<Self>, identity: &Identity) -> (Claim, CertificateHandle) {
        self.schedule
            .borrow_mut()
            .add_pod(identity, SystemTime::now());
        self.schedule_changed.notify_one();
        let mut states = self.states.borrow_mut();
        let sender = states
            .entry(identity.clone())
            .or_insert_with(|| watch::Sender::new(CertificateState::default()));
        let handle = CertificateHandle {
            identity: identity.clone(),
            state: sender.subscribe(),
            urgent: self.urgent.clone(),
        };
        let claim = Claim {
            certificates: self.clone(),
            identity: identity.clone(),
        };
        (claim, handle)
    }

    /// Requests certificates as they become due. Never returns.
    pub async fn run(self: Rc<Self>) {
        let Some(mut urgent_requests) = self.urgent_requests.borrow_mut().take() else {
            return;
        };
        let mut clock = WallClock::now();
        loop {
            let now = WallClock::now();
            if let Some(shift) = std::mem::replace(&mut clock, now).shift(&now) {
                self.clock_set(shift);
            }
            while let Some(identity) = self.next_due() {
                let certificates = self.clone();
                tokio::task::spawn_local(async move { certificates.request(identity).await });
            }
            let wake = self.schedule.borrow().wake_at();
            let wait = wake.map_or(MAX_SLEEP, |at| {
                at.duration_since(SystemTime::now()).unwrap_or_default()
            });
            tokio::select! {
                () = tokio::time::sleep(wait.min(MAX_SLEEP)) => {}
                () = self.schedule_changed.notified() => {}
                Some(identity) = urgent_requests.recv() => {
                    self.schedule.borrow_mut().prioritize(&identity);
                }
            }
        }
    }

    fn clock_set(&self, shift: ClockShift) {
        tracing::warn!(
            event = "clock_set",
            "the node's clock was set {shift}: certificates that are not valid now are requested"
        );
        let (now, states) = (SystemTime::now(), self.states.borrow());
        let is_valid = |identity: &Identity| {
            let state = states.get(identity).map(|state| state.borrow());
            let credentials = state.as_ref().and_then(|state| state.valid(now));
            credentials.is_some_and(|c| c.validity.not_before <= now)
        };
        let mut schedule = self.schedule.borrow_mut();
        schedule.clock_set(shift, now, is_valid, rand::random);
    }

    fn next_due(&self) -> Option<Identity> {
        self.schedule.borrow_mut().next_due(SystemTime::now())
    }

    async fn request(&self, identity: Identity) {
        let issued = self.issuer.issue(&identity).await;
        let accepted = issued.and_then(|certificate| self.accept(&identity, certificate));
        let now = SystemTime::now();
        match accepted {
            Ok(credentials) => {
                let validity = &credentials.validity;
                tracing::info!(%identity, serial = validity.serial, "certificate issued");
                let mut schedule = self.schedule.borrow_mut();
                schedule.record_issued(
                    &identity,
                    now,
                    validity.renew_at(),
                    validity.not_after,
                    rand::random(),
                );
                self.update(&identity, |state| {
                    *state = CertificateState {
                        credentials: Some(Arc::new(credentials)),
                        last_error: None,
                    };
                });
            }
            Err(error) => {
                tracing::error!(%identity, "failed to obtain a certificate: {error}");
                self.schedule
                    .borrow_mut()
                    .record_failure(&identity, now, rand::random());
                self.update(&identity, |state| state.last_error = Some(Arc::new(error)));
            }
        }
        self.schedule_changed.notify_one();
    }

    /// Checks an issued certificate. If it comes with new roots, all identities trust them at once
    /// in addition to their own roots, and all certificates are renewed.
    fn accept(
        &self,
        identity: &Identity,
        issued: IssuedCertificate,
    ) -> Result<Credentials, IssueError> {
        let invalid = |unusable| IssueError::Answer {
            authority: self.issuer.describe(),
            identity: identity.clone(),
            source: Box::new(unusable),
        };
        let now = SystemTime::now();
        let (key, validity) = issued
            .check(identity, now, &self.trust.tls.provider())
            .map_err(invalid)?;
        let credentials = Credentials::new(
            identity.clone(),
            Arc::new(key),
            validity,
            &issued.roots,
            issued.ignored_roots,
            self.trust.clone(),
        )
        .map_err(|e| invalid(UnusableCertificate::Tls(e)))?;
        for reason in credentials.ignored_roots() {
            tracing::warn!(%identity, "ignoring a root certificate: {reason}");
        }
        let previous = self.roots.replace(issued.roots);
        let roots = self.roots.borrow();
        if !previous.is_empty() && roots.iter().any(|r| !previous.contains(r)) {
            tracing::info!(
                event = "mesh_roots_changed",
                "root certificates changed: renewing all certificates"
            );
            for (other, sender) in self.states.borrow().iter().filter(|(i, _)| *i != identity) {
                sender.send_modify(|state| add_roots(other, state, &roots));
            }
            self.schedule.borrow_mut().renew_all(now, rand::random);
        }
        Ok(credentials)
    }

    fn update(&self, identity: &Identity, change: impl FnOnce(&mut CertificateState)) {
        if let Some(sender) = self.states.borrow().get(identity) {
            sender.send_modify(change);
        }
    }

    /// The certificate state of each identity.
    pub fn all(&self) -> Vec<(Identity, CertificateState)> {
        let states = self.states.borrow();
        states
            .iter()
            .map(|(identity, state)| (identity.clone(), state.borrow().clone()))
            .collect()
    }

    /// What peers are verified with.
    pub fn trust_report(&self) -> TrustReport {
        TrustReport::new(&self.all(), SystemTime::now())
    }

    /// Describes the source of the certificates.
    pub fn describe_source(&self) -> String {
        self.issuer.describe()
    }

    /// Whether revoked peers are rejected; see [`Revocations`](crate::Revocations).
    pub fn is_revocation_effective(&self) -> bool {
        self.trust.revocations.is_effective()
    }

    /// Waits until revoked peers are rejected.
    pub async fn until_revocation_is_effective(&self) {
        self.trust.revocations.until_effective().await;
    }

    /// What of the CRLs could not be loaded at the last attempt, and what is ignored.
    pub fn revocation_error(&self) -> Option<String> {
        self.trust.revocations.last_error()
    }
}

fn add_roots(identity: &Identity, state: &mut CertificateState, roots: &[CertificateDer<'static>]) {
    let Some(credentials) = &state.credentials else {
        return;
    };
    let mut all = credentials.roots().to_vec();
    all.extend(
        roots
            .iter()
            .filter(|r| !credentials.roots().contains(r))
            .cloned(),
    );
    match credentials.with_roots(&all) {
        Ok(extended) => state.credentials = Some(Arc::new(extended)),
        Err(e) => tracing::error!(%identity, "cannot use the new roots: {e}"),
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self
            .certificates
            .schedule
            .borrow_mut()
            .remove_pod(&self.identity)
        {
            self.certificates.states.borrow_mut().remove(&self.identity);
        }
    }
}
