//! Whether a connection may reach a workload.

use std::fmt;

use crate::address::{ClientAddr, PodAddr};
use crate::compiled::{Compiled, Subject};
use crate::decision::Decision;
use crate::identity::Identity;
use crate::policy::Action;
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::workload::Workload;

/// What policies look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub client: ClientAddr,
    /// The client's identity, if a certificate proved one.
    pub identity: Option<Identity>,
    /// Where it goes in the pod.
    pub destination: PodAddr,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

/// What policies say of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Whether it may pass.
    pub verdict: Verdict,
    /// What decided.
    pub why: Why,
    /// The first policy on trial that would have denied it, or been the one to allow it.
    pub dry_run: Option<(Action, Rule)>,
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The workload refers to a policy of this key, and nobody knows it.
    UnknownPolicy(Text),
    /// A rule of a deny policy.
    Denied(Rule),
    /// A rule of an allow policy.
    Allowed(Rule),
    /// There are allow policies, and none of them matches.
    NoneAllowed,
    /// There is no allow policy.
    NoAllowPolicy,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `namespace/name` of the policy.
    pub policy: Text,
    /// Which of its rules; the first is 0.
    pub index: usize,
}

/// What was looked at on the way to a ruling.
enum Looked<'a> {
    DryRun(&'a Compiled, Option<usize>),
    NoMatch(&'a Compiled),
}

/// Decides whether a connection may reach `workload` now: deny policies first, then allow policies, and a policy that the
/// workload refers to and nobody knows denies.
pub fn check(mesh: &Mesh, workload: &Workload, connection: &Connection) -> Ruling {
    evaluate(mesh, workload, connection, |_| {})
}

/// The same, with everything that was considered, for people.
pub fn authorize(mesh: &Mesh, workload: &Workload, connection: &Connection) -> Decision<Ruling> {
    let mut considered = Vec::new();
    let ruling = evaluate(mesh, workload, connection, |looked| considered.push(looked.to_string()));
    let reason = ruling.to_string();
    Decision::new(ruling, reason).after(considered)
}

fn evaluate(mesh: &Mesh, workload: &Workload, connection: &Connection, mut look: impl FnMut(&Looked<'_>)) -> Ruling {
    if let Some(key) = workload.authorization_policies.iter().find(|key| mesh.compiled_policy(key).is_none()) {
        return Ruling { verdict: Verdict::Deny, why: Why::UnknownPolicy(key.clone()), dry_run: None };
    }
    let subject = Subject::new(connection);
    let mut dry_run = None;
    let mut any_allow = false;
    for action in [Action::Deny, Action::Allow] {
        for policy in mesh.policies_of(workload).filter(|p| p.policy.action == action) {
            let matching = policy.matching_rule(&subject);
            let rule = matching.map(|index| Rule { policy: policy.key.clone(), index });
            match rule {
                _ if policy.policy.dry_run => {
                    look(&Looked::DryRun(policy, matching));
                    dry_run = dry_run.or(rule.map(|rule| (action, rule)));
                    continue;
                }
                Some(rule) if action == Action::Deny => {
                    return Ruling { verdict: Verdict::Deny, why: Why::Denied(rule), dry_run };
                }
                Some(rule) => return Ruling { verdict: Verdict::Allow, why: Why::Allowed(rule), dry_run },
                None => look(&Looked::NoMatch(policy)),
            }
            any_allow |= action == Action::Allow;
        }
    }
    match any_allow {
        true => Ruling { verdict: Verdict::Deny, why: Why::NoneAllowed, dry_run },
        false => Ruling { verdict: Verdict::Allow, why: Why::NoAllowPolicy, dry_run },
    }
}

impl Ruling {
    /// The rule that decided, if one did.
    pub fn rule(&self) -> Option<&Rule> {
        match &self.why {
            Why::Denied(rule) | Why::Allowed(rule) => Some(rule),
            Why::UnknownPolicy(_) | Why::NoneAllowed | Why::NoAllowPolicy => None,
        }
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::UnknownPolicy(key) => write!(f, "policy {key} is referred to and unknown"),
            Why::Denied(rule) => write!(f, "explicitly denied by: {rule}"),
            Why::Allowed(rule) => write!(f, "allowed by: {rule}"),
            Why::NoneAllowed => f.write_str("allow policies exist, but none allowed"),
            Why::NoAllowPolicy => f.write_str("no allow policy exists"),
        }
    }
}

impl fmt::Display for Rule {
    /// Rules are counted from 1 for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rule {})", self.policy, self.index + 1)
    }
}

impl fmt::Display for Looked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = |policy: &Compiled| match policy.policy.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        match self {
            Self::DryRun(p, Some(rule)) => {
                write!(f, "{} policy {} (dry run) matches by rule {}", action(p), p.key, rule + 1)
            }
            Self::DryRun(p, None) => write!(f, "{} policy {} (dry run) does not match", action(p), p.key),
            Self::NoMatch(p) => write!(f, "{} policy {} does not match", action(p), p.key),
        }
    }
}
