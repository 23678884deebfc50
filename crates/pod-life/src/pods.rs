//! All pods of a node, and what their lives mean to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use handoff::{Attachment, PodRef};

use crate::input::Conflict;
use crate::joining::Via;
use crate::life::{Life, Phase, Sandbox};
use crate::record::{Membership, OutsideRecord, Record};

/// Identifies a life on this node; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LifeId(u64);

/// The lives of all pods of a node.
#[derive(Debug, Default)]
pub struct Pods {
    lives: BTreeMap<LifeId, Life>,
    last: u64,
}

/// What a pod is to an observer.
#[derive(Debug, Clone, Copy)]
pub enum Standing<'a> {
    /// It belongs to the mesh, or its ADD waits for a proxy.
    Member(&'a Membership),
    /// It is leaving the mesh.
    Leaving(&'a Membership),
    /// It is outside, for this reason.
    Outside(&'a str),
    /// Its ADD has just begun, or it is being removed.
    Hidden,
}

impl Life {
    /// What the pod is to an observer.
    pub fn standing(&self) -> Standing<'_> {
        match &self.phase {
            Phase::Member(member) => Standing::Member(&member.membership),
            Phase::Leaving(leaving) if leaving.since.is_some() => {
                Standing::Leaving(&leaving.membership)
            }
            Phase::Leaving(leaving) => Standing::Member(&leaving.membership),
            Phase::Joining(joining) => match (&joining.before, joining.membership()) {
                (Some(before), _) => Standing::Outside(&before.reason),
                (None, Some(membership)) if joining.via == Via::Add => Standing::Member(membership),
                _ => Standing::Hidden,
            },
            Phase::Outside(outside) => Standing::Outside(&outside.reason),
            Phase::Removing(removing) => match &removing.then {
                Some(outside) => Standing::Outside(&outside.reason),
                None => Standing::Hidden,
            },
            Phase::New | Phase::Waiting { .. } | Phase::Gone => Standing::Hidden,
        }
    }
}

impl Pods {
    /// Adds a life.
    pub fn insert(&mut self, life: Life) -> LifeId {
        self.last += 1;
        let id = LifeId(self.last);
        self.lives.insert(id, life);
        id
    }

    /// Takes a life out, for a step.
    pub fn take(&mut self, id: LifeId) -> Option<Life> {
        self.lives.remove(&id)
    }

    /// Puts a life back, unless it is gone.
    pub fn put(&mut self, id: LifeId, life: Life) {
        if life.phase != Phase::Gone {
            self.lives.insert(id, life);
        }
    }

    /// Returns a life.
    pub fn get(&self, id: LifeId) -> Option<&Life> {
        self.lives.get(&id)
    }

    /// All lives.
    pub fn iter(&self) -> impl Iterator<Item = (LifeId, &Life)> {
        self.lives.iter().map(|(id, life)| (*id, life))
    }

    /// The lives for which this holds.
    pub fn find(&self, holds: impl Fn(&Life) -> bool) -> Vec<LifeId> {
        let found = self.iter().filter(|(_, life)| holds(life));
        found.map(|(id, _)| id).collect()
    }

    /// When the next life is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.lives.values().filter_map(Life::deadline).min()
    }

    /// Another life, than that of the ADD, that prevents an ADD in this sandbox, of the pod with
    /// this uid.
    pub fn conflict(
        &self,
        of: Option<LifeId>,
        sandbox: &Sandbox,
        uid: Option<&str>,
    ) -> Option<Conflict> {
        let mut conflict = None;
        for (_, life) in self.lives.iter().filter(|(id, _)| Some(**id) != of) {
            let is_same = is_same_sandbox(life, sandbox) || (uid.is_some() && life.uid() == uid);
            if is_same && life.is_adding() {
                return Some(Conflict::Adding);
            }
            if is_same && life.is_changing() {
                conflict = Some(Conflict::Changing);
            }
        }
        conflict
    }

    /// Whether another life has the same attachment or namespace.
    pub fn is_repeated(&self, sandbox: &Sandbox) -> bool {
        self.lives.values().any(|l| is_same_sandbox(l, sandbox))
    }

    /// The other lives that a life replaces: those with its attachment, or of the same pod.
    pub fn superseded_by(&self, id: LifeId, by: &Sandbox, uid: Option<&str>) -> Vec<LifeId> {
        let replaced = self.iter().filter(|(other, life)| {
            let same_pod = uid.is_some() && life.uid() == uid;
            *other != id && (life.sandbox.attachment == by.attachment || same_pod)
        });
        replaced.map(|(id, _)| id).collect()
    }

    /// The member in this network namespace that a runtime attached otherwise: a namespace may have
    /// several attachments, such as those of other interfaces, of which one makes it a member.
    /// `pod` is what the runtime calls it, if it has a name.
    pub fn attached_otherwise(
        &self,
        attachment: &Attachment,
        inode: u64,
        pod: Option<&PodRef>,
    ) -> Option<LifeId> {
        let of_namespace = self.iter().find(|(_, life)| {
            let Sandbox {
                synthesised,
                netns_inode,
                ..
            } = life.sandbox;
            let is_member = matches!(life.phase, Phase::Member(_) | Phase::Leaving(_));
            let of_life = &life.sandbox.pod;
            let is_same_pod = pod.is_none_or(|pod| match &pod.uid {
                Some(uid) => [life.uid(), of_life.uid.as_deref()].contains(&Some(uid)),
                None => (&pod.namespace, &pod.name) == (&of_life.namespace, &of_life.name),
            });
            let is_other = !synthesised && life.sandbox.attachment != *attachment;
            is_member && is_other && netns_inode == inode && is_same_pod
        });
        of_namespace.map(|(id, _)| id)
    }

    /// Adds an attachment to a life.
    pub fn attach(&mut self, id: LifeId, attachment: Attachment) {
        if let Some(life) = self.lives.get_mut(&id) {
            let further = &mut life.sandbox.further;
            if !further.contains(&attachment) {
                further.push(attachment);
            }
        }
    }

    /// Removes an attachment from a life that has another one. Returns whether there was one; if
    /// not, the attachment's DEL ends the life.
    pub fn detach(&mut self, attachment: &Attachment) -> bool {
        for life in self.lives.values_mut() {
            let Sandbox {
                attachment: first,
                further,
                ..
            } = &mut life.sandbox;
            if let Some(index) = further.iter().position(|a| a == attachment) {
                further.remove(index);
                return true;
            }
            if first == attachment && !further.is_empty() {
                *first = further.remove(0);
                return true;
            }
        }
        false
    }

    /// The lives that a DEL concerns: those with this attachment, and those of this pod whose
    /// attachment is made up.
    pub fn deleted_by(&self, attachment: &Attachment, pod: Option<&PodRef>) -> Vec<LifeId> {
        let uid = pod.and_then(|p| p.uid.as_deref());
        self.find(|life| {
            let by_uid = life.sandbox.synthesised && uid.is_some() && life.uid() == uid;
            life.sandbox.attachment == *attachment || by_uid
        })
    }

    /// The lives that a GC ends: those whose attachment a runtime made and no longer has.
    pub fn collected_by(&self, valid: &[Attachment]) -> Vec<LifeId> {
        self.find(|life| {
            let sandbox = &life.sandbox;
            let mut attachments = sandbox.further.iter().chain([&sandbox.attachment]);
            let is_valid = attachments.any(|a| valid.contains(a));
            !sandbox.synthesised && !is_valid && !life.is_adding()
        })
    }

    /// Number of pods whose membership is verified.
    pub fn members(&self) -> usize {
        let is_member = |life: &&Life| matches!(life.phase, Phase::Member(_));
        self.lives.values().filter(is_member).count()
    }

    /// The addresses of members, to which the node's health probes pass.
    pub fn probed_addresses(&self) -> BTreeSet<IpAddr> {
        let members = self
            .lives
            .values()
            .filter_map(|life| match life.standing() {
                Standing::Member(membership) => Some(&membership.plan.addresses),
                _ => None,
            });
        members.flatten().copied().collect()
    }

    /// The records of all pods, in the order of their attachments.
    pub fn records(&self) -> (Vec<Record>, Vec<OutsideRecord>) {
        let mut lives: Vec<&Life> = self.lives.values().collect();
        lives.sort_by(|a, b| a.sandbox.attachment.cmp(&b.sandbox.attachment));
        let members = lives.iter().filter_map(|life| life.record()).collect();
        let outside = lives.iter().filter_map(|life| life.outside_record());
        (members, outside.collect())
    }
}

fn is_same_sandbox(life: &Life, sandbox: &Sandbox) -> bool {
    life.sandbox.attachment == sandbox.attachment || life.sandbox.netns_inode == sandbox.netns_inode
}
