//! A store that never combines half of a change with the state before it.
//!
//! A control plane sends workloads, with the names of the policies that select them, and policies
//! in separate messages. Between the two, neither the old nor the new configuration would decide as
//! the mesh does: a workload that refers to a policy that has not arrived denies everything, and a
//! policy that has become one for selected workloads applies to none. So a half waits for the other
//! one, for a limited time, and the old configuration stays in effect until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::policy::{Policy, PolicyScope};
use crate::snapshot::{Mesh, MeshSettings};
use crate::store::{Placeholder, Removal, Resource, Store};
use crate::text::Text;
use crate::workload::Workload;

/// How long a change waits for policies that are missing.
const MISSING_POLICY_WAIT: Duration = Duration::from_secs(5);
/// How long a change waits for another one that may belong to it.
const RELATED_CHANGE_WAIT: Duration = Duration::from_secs(1);

/// A [`Store`] for pushes of a control plane. Time is passed in; the caller calls
/// [`SettlingStore::expire`] at [`SettlingStore::deadline`].
#[derive(Debug, Default)]
pub struct SettlingStore {
    store: Store,
    /// By uid: workloads whose policies have changed, with the policies of before in effect.
    held: BTreeMap<Text, HeldPolicies>,
    /// Removed policies, in effect because workloads refer to them, with their deadlines.
    retired: BTreeMap<Text, Instant>,
    /// Policies that have changed to apply only to the workloads that list them, with the previous
    /// version in effect until the deadline.
    narrowed: BTreeMap<Text, (Policy, Instant)>,
    /// Policies that have changed within [`RELATED_CHANGE_WAIT`], and when.
    recent: BTreeMap<Text, Instant>,
    /// The number of workloads that refer to a policy, by its key.
    references: HashMap<Text, usize>,
}

#[derive(Debug)]
struct HeldPolicies {
    /// The received list of policies.
    received: Vec<Text>,
    /// Policies of which only one of the lists has the name. The reason may be a change of the
    /// policy itself, which follows.
    awaited: BTreeSet<Text>,
    deadline: Instant,
}

impl SettlingStore {
    /// Creates an empty store.
    pub fn new(settings: MeshSettings) -> Self {
        Self {
            store: Store::new(settings),
            ..Self::default()
        }
    }

    /// Applies a push like [`Store::apply`], except for the parts that wait.
    pub fn apply<'a>(
        &mut self,
        upserts: impl IntoIterator<Item = Resource>,
        removed: impl IntoIterator<Item = Removal<'a>>,
        now: Instant,
    ) {
        let is_recent = |at: &Instant| *at + RELATED_CHANGE_WAIT > now;
        self.recent.retain(|_, at| is_recent(at));
        for removal in removed {
            match removal {
                Removal::Address(uid) => {
                    self.held.remove(uid);
                    self.count_references(uid, None);
                    self.store.apply([], [removal]);
                }
                Removal::Policy(key) => {
                    self.recent.insert(key.into(), now);
                    self.narrowed.remove(key);
                    if self.mesh().compiled_policy(key).is_some() {
                        let deadline = now + MISSING_POLICY_WAIT;
                        self.retired.entry(key.into()).or_insert(deadline);
                    }
                }
            }
        }
        for resource in upserts {
            match resource {
                Resource::Workload(mut workload) => {
                    self.hold(&mut workload, now);
                    self.put(workload);
                }
                Resource::Policy(policy) => {
                    self.recent.insert(policy.key().into(), now);
                    self.put_policy(policy, now);
                }
                Resource::Placeholder(Placeholder::Policy(ref policy)) => {
                    self.recent.insert(policy.key().into(), now);
                    self.store.apply([resource], []);
                }
                other => self.store.apply([other], []),
            }
        }
        self.release(now);
    }

    /// When [`SettlingStore::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.held.values().map(|held| held.deadline);
        let narrowed = self.narrowed.values().map(|(_, deadline)| *deadline);
        held.chain(narrowed)
            .chain(self.retired.values().copied())
            .min()
    }

    /// Applies what has waited for too long. Returns whether anything did.
    pub fn expire(&mut self, now: Instant) -> bool {
        let is_due = self.deadline().is_some_and(|deadline| deadline <= now);
        if is_due {
            self.release(now);
        }
        is_due
    }

    /// A snapshot of the current state.
    pub fn snapshot(&mut self) -> Arc<Mesh> {
        self.store.snapshot()
    }

    fn mesh(&self) -> &Mesh {
        self.store.mesh()
    }

    /// Keeps the policies of a known workload in effect if the received ones may be half of a
    /// change.
    fn hold(&mut self, workload: &mut Workload, now: Instant) {
        let held = self.held.remove(workload.uid.as_str());
        let mesh = self.store.mesh();
        let known = mesh.workload(&workload.uid);
        let Some(known) = known.filter(|known| !known.is_placeholder()) else {
            return;
        };
        let (in_effect, received) = (
            &known.authorization_policies,
            &workload.authorization_policies,
        );
        if in_effect == received {
            return;
        }
        let is_missing = received
            .iter()
            .any(|key| mesh.compiled_policy(key).is_none());
        let may_change = |key: &&Text| {
            let key = key.as_str();
            let has_changed = self.recent.contains_key(key) && !self.narrowed.contains_key(key);
            mesh.compiled_policy(key).is_some() && !has_changed
        };
        let dropped = in_effect.iter().filter(|key| !received.contains(key));
        let added = received.iter().filter(|key| !in_effect.contains(key));
        let awaited: BTreeSet<Text> = dropped.chain(added).filter(may_change).cloned().collect();
        if !is_missing && awaited.is_empty() {
            return;
        }
        let wait = if is_missing {
            MISSING_POLICY_WAIT
        } else {
            RELATED_CHANGE_WAIT
        };
        // A workload that keeps changing does not wait longer.
        let deadline = held.map_or(now + wait, |held| held.deadline);
        let in_effect = in_effect.clone();
        let received = std::mem::replace(&mut workload.authorization_policies, in_effect);
        let held = HeldPolicies {
            received,
            awaited,
            deadline,
        };
        self.held.insert(workload.uid.clone(), held);
    }

    fn put(&mut self, workload: Workload) {
        self.count_references(&workload.uid, Some(&workload));
        self.store.apply([Resource::Workload(workload)], []);
    }

    fn put_policy(&mut self, policy: Policy, now: Instant) {
        let key = policy.key();
        let was_retired = self.retired.remove(key.as_str()).is_some();
        let narrowed = self.narrowed.remove(key.as_str());
        let known = self.mesh().compiled_policy(&key).map(|known| &known.policy);
        let is_narrower = policy.scope == PolicyScope::WorkloadSelector
            && known.is_some_and(|known| known.scope != PolicyScope::WorkloadSelector);
        if is_narrower && !was_retired {
            let deadline = narrowed.map_or(now + RELATED_CHANGE_WAIT, |(_, deadline)| deadline);
            self.narrowed.insert(key.into(), (policy, deadline));
        } else {
            self.store.apply([Resource::Policy(policy)], []);
        }
    }

    /// Updates the numbers of references for a workload that is replaced or removed.
    fn count_references(&mut self, uid: &str, next: Option<&Workload>) {
        let known = self.store.mesh().workload(uid).cloned();
        for key in known.iter().flat_map(|known| &known.authorization_policies) {
            if let Some(count) = self.references.get_mut(key.as_str()) {
                *count -= 1;
                if *count == 0 {
                    self.references.remove(key.as_str());
                }
            }
        }
        for key in next.iter().flat_map(|next| &next.authorization_policies) {
            *self.references.entry(key.clone()).or_default() += 1;
        }
    }

    /// Applies what need not wait any more.
    fn release(&mut self, now: Instant) {
        let due = |narrowed: &BTreeMap<Text, (Policy, Instant)>| {
            let due = narrowed.iter().find(|(_, (_, deadline))| *deadline <= now);
            due.map(|(key, _)| key.clone())
        };
        while let Some(key) = due(&self.narrowed) {
            if let Some((policy, _)) = self.narrowed.remove(key.as_str()) {
                self.store.apply([Resource::Policy(policy)], []);
                self.recent.insert(key, now);
            }
        }
        let mut ready = Vec::new();
        for (uid, held) in &mut self.held {
            let recent = &self.recent;
            held.awaited
                .retain(|key| !recent.contains_key(key.as_str()));
            let mesh = self.store.mesh();
            let is_known = |key: &Text| mesh.compiled_policy(key).is_some();
            let is_settled = held.awaited.is_empty() && held.received.iter().all(is_known);
            if is_settled || held.deadline <= now {
                ready.push(uid.clone());
            }
        }
        for uid in ready {
            let held = self.held.remove(uid.as_str());
            let known = self.mesh().workload(&uid).cloned();
            if let Some((held, known)) = held.zip(known) {
                self.put(Workload {
                    authorization_policies: held.received,
                    ..Workload::clone(&known)
                });
            }
        }
        let references = &self.references;
        let mut removed = Vec::new();
        self.retired.retain(|key, deadline| {
            let stays = references.contains_key(key.as_str()) && *deadline > now;
            if !stays {
                removed.push(key.clone());
            }
            stays
        });
        for key in removed {
            self.store.apply([], [Removal::Policy(&key)]);
        }
    }
}
