//! Keeps the node's rule for health probes in sync with the enrolled pods. The rule stays when the
//! agent stops, so that no probe fails until the next one starts.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_status::HostProbesStatus;
use anyhow::Context;
use error_code::agent as codes;
use netns::watch::Watch;
use netns::{NetNs, NetNsError};
use nft::{NftError, Socket};
use redirect::host::{self, TableChange};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::metrics::Metrics;
use crate::reporter::{HostProbesFailed, HostProbesRepaired};

/// Interval of checks without any change.
const INTERVAL: Duration = Duration::from_secs(30);
/// Delay of a check after a change, since the nf_tables of a busy node change often.
const SETTLE: Duration = Duration::from_secs(1);

/// Why the node's table could not be read or changed.
#[derive(Debug, thiserror::Error)]
enum HostTableError {
    /// The node's namespace cannot be entered. Likely cause: CAP_SYS_ADMIN is missing.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The kernel rejected the operation. Likely cause: a kernel without nf_tables.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// The rule in the node's namespace. [`run`] changes it on another thread: the kernel changes the
/// tables of a namespace one transaction at a time, and one of kube-proxy may take seconds.
#[derive(Debug)]
pub(crate) struct HostProbes {
    netns: Arc<NetNs>,
    enabled: bool,
    wanted: RefCell<Option<BTreeSet<IpAddr>>>,
    requested: Notify,
    state: RefCell<RuleState>,
}

/// What is known of the rule.
#[derive(Debug, Default)]
struct RuleState {
    /// How many addresses the rule's set has; 0 if unknown.
    addresses: usize,
    error: Option<String>,
}

impl HostProbes {
    /// Opens the node's namespace. If disabled, removes a rule that an earlier agent left;
    /// otherwise installs nothing yet.
    pub(crate) fn open(netns: Option<&Path>, enabled: bool) -> anyhow::Result<Self> {
        let probes = Self {
            netns: Arc::new(node_netns(netns)?),
            enabled,
            wanted: RefCell::default(),
            requested: Notify::new(),
            state: RefCell::default(),
        };
        if !enabled {
            // A kernel without nf_tables has nothing to remove.
            let _ = remove(&probes.netns);
        }
        Ok(probes)
    }

    /// The node's namespace.
    pub(crate) fn netns(&self) -> Arc<NetNs> {
        self.netns.clone()
    }

    /// Requests that the rule has the addresses of these enrolled pods; does not wait for it.
    pub(crate) fn set_pods(&self, pods: &BTreeSet<IpAddr>) {
        let mut wanted = self.wanted.borrow_mut();
        if wanted.as_ref() != Some(pods) {
            *wanted = Some(pods.clone());
            self.requested.notify_one();
        }
    }

    fn record(&self, change: Result<usize, &HostTableError>) {
        let mut state = self.state.borrow_mut();
        match change {
            Ok(addresses) => {
                *state = RuleState {
                    addresses,
                    error: None,
                }
            }
            Err(e) => {
                let why = e.to_string();
                if state.error.as_ref() != Some(&why) {
                    HostProbesFailed { why: &why }.emit();
                }
                *state = RuleState {
                    addresses: 0,
                    error: Some(why),
                }
            }
        }
    }

    pub(crate) fn status(&self) -> HostProbesStatus {
        let rule = self.state.borrow();
        let state = match &rule.error {
            Some(_) => "failed",
            None if self.enabled => "in place",
            None => "off",
        };
        HostProbesStatus {
            state: state.to_owned(),
            addresses: rule.addresses,
            reason: rule.error.clone(),
        }
    }
}

/// The table in the node's namespace, as one thread at a time uses it.
#[derive(Debug)]
struct NodeTable {
    netns: Arc<NetNs>,
    /// Kept open: closing a socket after a deletion waits for the kernel.
    socket: Option<Socket>,
    /// The addresses in the rule's set; `None` if unknown.
    pods: Option<BTreeSet<IpAddr>>,
}

/// A finished change of the table.
#[derive(Debug)]
struct Change {
    result: Result<TableChange, HostTableError>,
    /// Whether the table differed from what was known.
    is_repair: bool,
}

impl NodeTable {
    /// Sets the addresses. Reads the table first if its content is unknown, if `check`, or if
    /// another process has changed it.
    fn set(&mut self, wanted: &BTreeSet<IpAddr>, check: bool) -> Change {
        let known = self.pods.take();
        let updated = match &known {
            Some(known) if !check => self
                .with_socket(|socket| host::update(socket, known, wanted))
                .map(|()| TableChange::Unchanged)
                .ok(),
            _ => None,
        };
        let result = match updated {
            Some(change) => Ok(change),
            None => self.with_socket(|socket| host::reconcile(socket, wanted)),
        };
        self.pods = result.is_ok().then(|| wanted.clone());
        let is_repair = known.is_some() && !matches!(result, Ok(TableChange::Unchanged) | Err(_));
        Change { result, is_repair }
    }

    fn with_socket<T>(
        &mut self,
        work: impl FnOnce(&Socket) -> Result<T, NftError>,
    ) -> Result<T, HostTableError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.netns.run(Socket::open)??,
        };
        // Not reused after an error: unread answers may be queued.
        let result = work(&socket)?;
        self.socket = Some(socket);
        Ok(result)
    }
}

/// Changes the rule when that is requested, and repairs it after changes and at intervals, forever.
pub(crate) async fn run(probes: Rc<HostProbes>, metrics: Rc<Metrics>) {
    if !probes.enabled {
        return;
    }
    let watch = Watch::open_nf_tables(&probes.netns)
        .inspect_err(|e| {
            tracing::warn!("cannot watch the node's nf_tables; falling back to polling: {e}");
        })
        .ok();
    let mut table = NodeTable {
        netns: probes.netns(),
        socket: None,
        pods: None,
    };
    let mut next_check = Instant::now() + INTERVAL;
    let mut has_changed = false;
    loop {
        let changed = async {
            match &watch {
                Some(watch) if watch.changed().await.is_ok() => {}
                _ => std::future::pending().await,
            }
        };
        let check = tokio::select! {
            () = probes.requested.notified() => false,
            () = sleep_until(next_check) => true,
            () = changed, if !has_changed => {
                has_changed = true;
                next_check = Instant::now() + SETTLE;
                continue;
            }
        };
        let by = match &watch {
            Some(watch) if check => watch.drain(),
            _ => Vec::new(),
        };
        if check {
            has_changed = false;
            next_check = Instant::now() + INTERVAL;
        }
        let Some(wanted) = probes.wanted.borrow().clone() else {
            continue;
        };
        let addresses = wanted.len();
        let work = move || {
            let change = table.set(&wanted, check);
            (table, change)
        };
        let Ok((used, change)) = tokio::task::spawn_blocking(work).await else {
            return; // the agent is stopping
        };
        table = used;
        if let (Ok(what), true) = (&change.result, change.is_repair) {
            HostProbesRepaired { what, by: &by }.emit(&metrics);
        }
        probes.record(change.result.as_ref().map(|_| addresses));
    }
}

/// Removes the rule; returns whether it existed.
pub(crate) fn uninstall(netns: Option<&Path>) -> anyhow::Result<bool> {
    remove(&node_netns(netns)?).map_err(|e| anyhow::anyhow!("{}: {e}", codes::HOST_PROBES))
}

fn remove(netns: &NetNs) -> Result<bool, HostTableError> {
    Ok(netns.run(|| Socket::open().and_then(|socket| host::remove(&socket)))??)
}

fn node_netns(path: Option<&Path>) -> anyhow::Result<NetNs> {
    let netns = path.map_or_else(NetNs::current, NetNs::open);
    netns.with_context(|| format!("{}: --host-netns", codes::HOST_PROBES))
}
