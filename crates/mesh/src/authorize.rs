//! Decides whether a connection may reach a workload.

use std::fmt;
use std::sync::Arc;

use crate::compiled::{CompiledPolicy, Matching, Subject};
use crate::decision::Decision;
use crate::policy::Action;
use crate::snapshot::Mesh;
use crate::text::Text;
use crate::trust_domains::TrustDomains;
use crate::workload::Workload;

pub use crate::connection::Connection;

/// Whether a connection is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The connection is allowed.
    Allow,
    /// The connection is denied.
    Deny,
}

/// The result of evaluating the policies for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// The reason for the verdict; it implies the verdict.
    pub reason: RulingReason,
    /// What each dry-run policy would have done, if it were the only one that is enforced as well.
    pub dry_run: Vec<DryRun>,
}

/// What a dry-run policy would have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DryRun {
    /// A rule matches, or may match; the policy's action would have been taken.
    Matches(Action, Rule),
    /// An allow policy, `namespace/name`, of which no rule matches, while no other one allows the
    /// connection: it would have been denied.
    NotAllowed(Text),
}

/// The reason for a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulingReason {
    /// The workload with this uid is not understood, so its policies are unknown.
    UnknownWorkload(Text),
    /// The workload refers to this policy, but the policy is unknown.
    UnknownPolicy(Text),
    /// A rule of a deny policy matched.
    Denied(Rule),
    /// A rule of a deny policy may match: it has these parts that are not understood.
    DeniedInDoubt(Rule, String),
    /// A rule of an allow policy matched.
    Allowed(Rule),
    /// Allow policies exist, but none matched.
    NoneAllowed,
    /// Like `NoneAllowed`, but a rule may match: it has these parts that are not understood.
    NotAllowedInDoubt(Rule, String),
    /// No allow policy exists.
    NoAllowPolicy,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `namespace/name` of the policy.
    pub policy: Text,
    /// Index of the rule, starting at 0.
    pub index: usize,
}

/// A policy that was considered but did not decide.
enum ConsideredPolicy<'a> {
    DryRun(&'a CompiledPolicy, Option<Matching>),
    /// With the names of the trust domain, and that of the workload.
    NoMatch(&'a CompiledPolicy, &'a TrustDomains, &'a str),
}

/// Decides whether a connection may reach `workload`. Deny policies are evaluated before allow
/// policies. If the workload refers to an unknown policy, the connection is denied.
pub fn check(mesh: &Mesh, workload: &Workload, connection: &Connection) -> Ruling {
    evaluate(mesh, workload, connection, |_| {})
}

/// Like [`check`], but also records every policy that was considered.
pub fn authorize(mesh: &Mesh, workload: &Workload, connection: &Connection) -> Decision<Ruling> {
    let mut considered = Vec::new();
    let ruling = evaluate(mesh, workload, connection, |policy| {
        considered.push(policy.to_string())
    });
    let reason = ruling.to_string();
    Decision::new(ruling, reason).after(considered)
}

fn evaluate(
    mesh: &Mesh,
    workload: &Workload,
    connection: &Connection,
    mut consider: impl FnMut(&ConsideredPolicy<'_>),
) -> Ruling {
    let undecided = |reason| Ruling {
        reason,
        dry_run: Vec::new(),
    };
    if workload.is_placeholder() {
        return undecided(RulingReason::UnknownWorkload(workload.uid.clone()));
    }
    if let Some(key) = workload
        .authorization_policies
        .iter()
        .find(|key| mesh.compiled_policy(key).is_none())
    {
        return undecided(RulingReason::UnknownPolicy(key.clone()));
    }
    let subject = Subject::new(connection, &mesh.trust_domains, &workload.trust_domain);
    let mut on_trial = Vec::new();
    let (mut decided, mut any_allow, mut in_doubt) = (None, false, None);
    for action in [Action::Deny, Action::Allow] {
        for policy in mesh
            .policies_of(workload)
            .filter(|p| p.policy.action == action)
        {
            if policy.policy.dry_run {
                let matching = policy.matching_rule(&subject);
                consider(&ConsideredPolicy::DryRun(policy, matching));
                on_trial.push((policy, matching));
                continue;
            }
            if decided.is_some() {
                continue;
            }
            let matching = policy.matching_rule(&subject);
            let rule = |m: Matching| policy.rule(m.rule);
            match (action, matching) {
                (Action::Deny, Some(m)) if m.is_certain => {
                    decided = Some(RulingReason::Denied(rule(m)));
                }
                (Action::Deny, Some(m)) => {
                    let parts = policy.not_understood(m.rule);
                    decided = Some(RulingReason::DeniedInDoubt(rule(m), parts));
                }
                (Action::Allow, Some(m)) if m.is_certain => {
                    decided = Some(RulingReason::Allowed(rule(m)));
                }
                (_, matching) => {
                    let (domains, own) = (&mesh.trust_domains, &workload.trust_domain);
                    consider(&ConsideredPolicy::NoMatch(policy, domains, own));
                    any_allow |= action == Action::Allow;
                    in_doubt = in_doubt.or(matching.map(|m| (policy, m)));
                }
            }
        }
    }
    let undecided = || match in_doubt {
        Some((policy, m)) => {
            RulingReason::NotAllowedInDoubt(policy.rule(m.rule), policy.not_understood(m.rule))
        }
        None if any_allow => RulingReason::NoneAllowed,
        None => RulingReason::NoAllowPolicy,
    };
    let reason = decided.unwrap_or_else(undecided);
    let outcome = |(policy, matching): &(&Arc<CompiledPolicy>, Option<Matching>)| {
        let action = policy.policy.action;
        match matching {
            Some(m) if m.is_certain || action == Action::Deny => {
                Some(DryRun::Matches(action, policy.rule(m.rule)))
            }
            _ => (action == Action::Allow && reason == RulingReason::NoAllowPolicy)
                .then(|| DryRun::NotAllowed(policy.key.clone())),
        }
    };
    let dry_run = on_trial.iter().filter_map(outcome).collect();
    Ruling { reason, dry_run }
}

impl CompiledPolicy {
    fn rule(&self, index: usize) -> Rule {
        Rule {
            policy: self.key.clone(),
            index,
        }
    }
}

impl Ruling {
    /// Whether the connection is allowed.
    pub fn verdict(&self) -> Verdict {
        match self.reason {
            RulingReason::Allowed(_) | RulingReason::NoAllowPolicy => Verdict::Allow,
            RulingReason::UnknownWorkload(_)
            | RulingReason::UnknownPolicy(_)
            | RulingReason::Denied(_)
            | RulingReason::DeniedInDoubt(..)
            | RulingReason::NoneAllowed
            | RulingReason::NotAllowedInDoubt(..) => Verdict::Deny,
        }
    }

    /// The rule that decided, if any.
    pub fn rule(&self) -> Option<&Rule> {
        match &self.reason {
            RulingReason::Denied(rule)
            | RulingReason::DeniedInDoubt(rule, _)
            | RulingReason::Allowed(rule) => Some(rule),
            RulingReason::UnknownWorkload(_)
            | RulingReason::UnknownPolicy(_)
            | RulingReason::NoneAllowed
            | RulingReason::NotAllowedInDoubt(..)
            | RulingReason::NoAllowPolicy => None,
        }
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            RulingReason::UnknownWorkload(uid) => {
                write!(f, "this version does not understand workload {uid}")
            }
            RulingReason::UnknownPolicy(key) => {
                write!(f, "the workload refers to unknown policy {key}")
            }
            RulingReason::Denied(rule) => write!(f, "explicitly denied by: {rule}"),
            RulingReason::DeniedInDoubt(rule, parts) => write!(
                f,
                "denied by: {rule}, in which this version does not understand: {parts}"
            ),
            RulingReason::Allowed(rule) => write!(f, "allowed by: {rule}"),
            RulingReason::NoneAllowed => f.write_str("allow policies exist, but none allowed"),
            RulingReason::NotAllowedInDoubt(rule, parts) => write!(
                f,
                "allow policies exist, but none allowed; {rule} might, but this version does not \
                 understand: {parts}"
            ),
            RulingReason::NoAllowPolicy => f.write_str("no allow policy exists"),
        }
    }
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matches(action, rule) => write!(f, "{action:?} by {rule}"),
            Self::NotAllowed(policy) => {
                write!(f, "Deny by {policy}: an allow policy, and no rule matches")
            }
        }
    }
}

impl fmt::Display for Rule {
    /// Numbers rules from 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rule {})", self.policy, self.index + 1)
    }
}

impl fmt::Display for ConsideredPolicy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = |policy: &CompiledPolicy| match policy.policy.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        match self {
            Self::DryRun(p, Some(m)) => {
                let matches = if m.is_certain { "matches" } else { "may match" };
                write!(
                    f,
                    "{} policy {} (dry run) {matches} by rule {}",
                    action(p),
                    p.key,
                    m.rule + 1
                )
            }
            Self::DryRun(p, None) => {
                write!(f, "{} policy {} (dry run) does not match", action(p), p.key)
            }
            Self::NoMatch(p, domains, own) => {
                write!(f, "{} policy {} does not match", action(p), p.key)?;
                match p.policy.impossible_principal(domains, Some(*own)) {
                    Some(why) => write!(f, "; {why}"),
                    None => Ok(()),
                }
            }
        }
    }
}
