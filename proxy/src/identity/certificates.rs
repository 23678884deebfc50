//! The certificates of this node: one for each identity of its pods, asked for when the first such pod comes, renewed while
//! there is one, and forgotten with the last.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::Identity;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use super::credentials::{Credentials, Trust};
use super::handle::{Handle, Held};
use super::issued::Issued;
use super::schedule::Schedule;
use super::source::{IssueError, Source};

/// The schedule is looked at no less often than this, for the clock may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// All certificates of this node. Lives on the control thread.
pub(crate) struct Certificates {
    source: Source,
    trust: Arc<Trust>,
    schedule: RefCell<Schedule>,
    held: RefCell<BTreeMap<Identity, watch::Sender<Held>>>,
    /// The roots of the newest answer.
    roots: RefCell<Vec<CertificateDer<'static>>>,
    changed: Notify,
    urgent: UnboundedSender<Identity>,
    urgencies: RefCell<Option<UnboundedReceiver<Identity>>>,
}

/// A pod's share in a certificate. Dropping it gives the share up.
pub(crate) struct Claim {
    certificates: Rc<Certificates>,
    identity: Identity,
}

impl Certificates {
    pub(crate) fn new(source: Source, trust: Arc<Trust>) -> Self {
        let (urgent, urgencies) = unbounded_channel();
        Self {
            source,
            trust,
            schedule: RefCell::default(),
            held: RefCell::default(),
            roots: RefCell::default(),
            changed: Notify::new(),
            urgent,
            urgencies: RefCell::new(Some(urgencies)),
        }
    }

    /// A pod of this identity has come. Its certificate is asked for at once, unless there is one.
    pub(crate) fn claim(self: &Rc<Self>, identity: &Identity) -> (Claim, Handle) {
        self.schedule.borrow_mut().wanted(identity, SystemTime::now());
        self.changed.notify_one();
        let mut held = self.held.borrow_mut();
        let sender = held.entry(identity.clone()).or_insert_with(|| watch::Sender::new(Held::default()));
        let handle = Handle::new(identity.clone(), sender.subscribe(), self.urgent.clone());
        (Claim { certificates: self.clone(), identity: identity.clone() }, handle)
    }

    /// Asks for what is due, for as long as the process lives.
    pub(crate) async fn run(self: Rc<Self>) {
        let Some(mut urgencies) = self.urgencies.borrow_mut().take() else { return };
        loop {
            while let Some(identity) = self.next() {
                let certificates = self.clone();
                tokio::task::spawn_local(async move { certificates.ask(identity).await });
            }
            let wake = self.schedule.borrow().wake_at();
            let wait = wake.map_or(LONGEST_SLEEP, |at| at.duration_since(SystemTime::now()).unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
                () = self.changed.notified() => {}
                Some(identity) = urgencies.recv() => self.schedule.borrow_mut().urgent(&identity),
            }
        }
    }

    fn next(&self) -> Option<Identity> {
        self.schedule.borrow_mut().next(SystemTime::now())
    }

    async fn ask(&self, identity: Identity) {
        let asked = self.source.issue(&identity).await;
        let taken = asked.and_then(|issued| self.take(&identity, issued));
        let now = SystemTime::now();
        match taken {
            Ok(credentials) => {
                let validity = &credentials.validity;
                tracing::info!(%identity, serial = validity.serial, "a certificate was issued");
                let mut schedule = self.schedule.borrow_mut();
                schedule.issued(&identity, now, validity.renew_at(), validity.not_after);
                self.tell(&identity, |held| *held = Held { credentials: Some(Arc::new(credentials)), trouble: None });
            }
            Err(error) => {
                tracing::error!(%identity, "no certificate was issued: {error}");
                self.schedule.borrow_mut().failed(&identity, now, rand::random());
                self.tell(&identity, |held| held.trouble = Some(error.to_string()));
            }
        }
        self.changed.notify_one();
    }

    /// An answer that is what was asked for. New roots are trusted for all, beside those that each certificate came with,
    /// until that is replaced, too: which is done at once.
    fn take(&self, identity: &Identity, issued: Issued) -> Result<Credentials, IssueError> {
        let wrong = |why: String| IssueError::Answer(format!("{} for {identity}: {why}", self.source.describe()));
        let now = SystemTime::now();
        let (key, validity) = issued.check(identity, now, &self.trust.tls.provider()).map_err(wrong)?;
        let credentials =
            Credentials::new(identity.clone(), Arc::new(key), validity, &issued.roots, self.trust.clone())
                .map_err(|e| wrong(e.to_string()))?;
        let before = self.roots.replace(issued.roots);
        let roots = self.roots.borrow();
        if !before.is_empty() && roots.iter().any(|r| !before.contains(r)) {
            tracing::info!("the roots of the mesh have changed: all certificates are renewed");
            for (other, sender) in self.held.borrow().iter().filter(|(i, _)| *i != identity) {
                sender.send_modify(|held| trust_also(other, held, &roots));
            }
            self.schedule.borrow_mut().renew_all(now);
        }
        Ok(credentials)
    }

    fn tell(&self, identity: &Identity, change: impl FnOnce(&mut Held)) {
        if let Some(sender) = self.held.borrow().get(identity) {
            sender.send_modify(change);
        }
    }

    /// What is held for each identity.
    pub(crate) fn all(&self) -> Vec<(Identity, Held)> {
        self.held.borrow().iter().map(|(identity, held)| (identity.clone(), held.borrow().clone())).collect()
    }

    /// Who issues them, in words.
    pub(crate) fn source(&self) -> String {
        self.source.describe()
    }

    /// Why the lists of revoked certificates are not taken, if they are not.
    pub(crate) fn revocation_trouble(&self) -> Option<String> {
        self.trust.revocations.trouble()
    }
}

fn trust_also(identity: &Identity, held: &mut Held, roots: &[CertificateDer<'static>]) {
    let Some(credentials) = &held.credentials else { return };
    let mut all = credentials.roots().to_vec();
    all.extend(roots.iter().filter(|r| !credentials.roots().contains(r)).cloned());
    match credentials.with_roots(&all) {
        Ok(renewed) => held.credentials = Some(Arc::new(renewed)),
        Err(e) => tracing::error!(%identity, "new roots cannot be used: {e}"),
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.certificates.schedule.borrow_mut().left(&self.identity) {
            self.certificates.held.borrow_mut().remove(&self.identity);
        }
    }
}
