//! What other programs have set up in a pod and what changes where its packets go, although
//! Underpass's own rules are as planned.

use std::fmt;

use nft::{EffectiveChain, Hook, OwnObjects, PacketEffect};

use crate::error::RedirectError;
use crate::iptables_program::ExistingTables;
use crate::legacy_tables;
use crate::plan::{CaptureKind, Mark, Plan, RETURN_MARK};
use crate::policy_rule::PolicyRule;
use crate::rule::{FILTER, MANGLE, TABLE_NAME};
use crate::rule_priorities::{NamespaceRules, diverts};
use crate::xtables;

/// Something of another program that changes where the pod's packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bypass {
    /// An ip rule that is evaluated before Underpass's.
    PolicyRule(PolicyRule),
    /// A chain of another table that marks or redirects packets.
    Chain(EffectiveChain),
    /// What moves packets between an interface and another one or a virtual machine, below the
    /// pod's network stack.
    BelowTheStack(String),
}

impl Bypass {
    /// Whether packets do not pass the pod's network stack at all.
    pub fn is_below_the_stack(&self) -> bool {
        matches!(self, Self::BelowTheStack(_))
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PolicyRule(rule) => {
                write!(f, "{rule} takes precedence over Underpass's ip rules")
            }
            Self::Chain(chain) => {
                write!(f, "{chain} may change where captured packets go")?;
                match redirected_ports(chain)[..] {
                    [] => Ok(()),
                    [port] => write!(f, ": it redirects port {port}"),
                    ref ports => write!(f, ": it redirects ports {}", listed(ports)),
                }
            }
            Self::BelowTheStack(what) => f.write_str(what),
        }
    }
}

/// The objects that are a plan's own.
pub(crate) fn own_objects(plan: &Plan) -> OwnObjects<'static> {
    let by_iptables =
        [CaptureKind::NatIptablesNft, CaptureKind::NatIptablesLegacy].contains(&plan.capture);
    OwnObjects {
        table: TABLE_NAME,
        chains: by_iptables.then_some(xtables::PREFIX),
    }
}

/// Finds what may change where the packets go that a plan captures: given what passes packets below
/// the network stack, all ip rules, and the chains of nf_tables that have an effect.
pub(crate) fn find(
    plan: &Plan,
    below_the_stack: Vec<String>,
    rules: &NamespaceRules,
    mut chains: Vec<EffectiveChain>,
    existing: &ExistingTables,
) -> Result<Vec<Bypass>, RedirectError> {
    let below = below_the_stack.into_iter();
    let mut out: Vec<Bypass> = below.map(Bypass::BelowTheStack).collect();
    let is_ahead = |(rule, body): &&(PolicyRule, Vec<u8>)| {
        rule.priority <= rules.priorities.capture() && diverts(body, plan.dns)
    };
    let ahead = rules.others.iter().filter(is_ahead);
    out.extend(ahead.map(|(rule, _)| Bypass::PolicyRule(rule.clone())));
    chains.extend(legacy_tables::effective_chains(
        existing,
        own_objects(plan).chains,
    )?);
    let interfering = chains.into_iter().filter(|c| interferes(plan, c));
    out.extend(interfering.map(Bypass::Chain));
    Ok(out)
}

/// Whether a chain of another table can mark packets as Underpass does, or sends them elsewhere.
fn interferes(plan: &Plan, chain: &EffectiveChain) -> bool {
    let is_before = match chain.hook {
        _ if chain.is_of_interface() => true,
        Hook::Prerouting => chain.priority <= MANGLE,
        Hook::Output => chain.priority <= FILTER,
        Hook::Postrouting | Hook::Other(_) => false,
    };
    let redirects = chain.is_of_interface() || !matches!(chain.hook, Hook::Other(_));
    chain.effects.iter().any(|effect| match *effect {
        // The guard accepts the proxy's packets by their mark without any other bit.
        PacketEffect::Marks { mask, .. } if chain.hook == Hook::Output => is_before && mask != 0,
        PacketEffect::Marks { mask, value } => {
            let marks = |mark| can_become(mask, value, mark);
            is_before && (marks(plan.mark) || marks(RETURN_MARK))
        }
        PacketEffect::Redirects { .. } => redirects,
        PacketEffect::Drops => false,
    })
}

/// The ports whose packets a chain redirects, if it redirects those of single ports only.
fn redirected_ports(chain: &EffectiveChain) -> Vec<u16> {
    let redirects = chain.effects.iter().filter_map(|effect| match effect {
        PacketEffect::Redirects { port } => Some(*port),
        _ => None,
    });
    redirects.collect::<Option<Vec<u16>>>().unwrap_or_default()
}

/// The first ports of a list, and how many others there are.
fn listed(ports: &[u16]) -> String {
    const MOST: usize = 8;
    let first = ports.iter().take(MOST).map(u16::to_string);
    let first = first.collect::<Vec<_>>().join(", ");
    match ports.len().saturating_sub(MOST) {
        0 => first,
        others => format!("{first} and {others} others"),
    }
}

/// Whether some mark becomes this one when the bits under `mask` are replaced by those of `value`.
fn can_become(mask: u32, value: u32, mark: Mark) -> bool {
    let replaced = mask & mark.mask;
    replaced != 0 && (value ^ mark.value) & replaced == 0
}

#[cfg(test)]
mod tests {
    use nft::Family;

    use super::*;

    #[test]
    fn only_chains_that_mark_like_underpass_or_redirect_interfere() {
        let plan = Plan::for_pod([[10, 0, 0, 1].into()]);
        let chain = |hook, priority, effect| EffectiveChain {
            family: Some(Family::Inet),
            table: "t".to_owned(),
            chain: "c".to_owned(),
            is_legacy: false,
            hook,
            priority,
            effects: [effect].into(),
        };
        let marks = |mask, value| PacketEffect::Marks { mask, value };
        let all = u32::MAX;
        for (hook, priority, effect, expected) in [
            (Hook::Output, -1, marks(all, 0x539), true),
            (Hook::Output, -1, marks(all, 0x1_0539), true),
            (Hook::Output, -1, marks(0x4000, 0x4000), true),
            (Hook::Prerouting, -200, marks(0x1, 0x1), true),
            (Hook::Prerouting, -200, marks(0x4000, 0x4000), false),
            (Hook::Prerouting, -200, marks(all, 0xca6c), false),
            (Hook::Output, 1, marks(all, 0x539), false),
            (Hook::Prerouting, -200, marks(all, 0x539), true),
            (Hook::Prerouting, 0, marks(all, 0x539), false),
            (Hook::Postrouting, 0, marks(all, 0x539), false),
            (Hook::Output, 100, PacketEffect::REDIRECTS, true),
            (Hook::Other(2), 0, PacketEffect::REDIRECTS, false),
            (Hook::Output, -100, PacketEffect::Drops, false),
        ] {
            let chain = chain(hook, priority, effect);
            assert_eq!(interferes(&plan, &chain), expected, "{chain:?}");
        }
        let published = |ports: &[Option<u16>]| {
            let mut chain = chain(Hook::Prerouting, -100, marks(1, 1));
            let redirects = ports
                .iter()
                .map(|port| PacketEffect::Redirects { port: *port });
            chain.effects.extend(redirects);
            let text = Bypass::Chain(chain).to_string();
            text.split_once("packets go").unwrap().1.to_owned()
        };
        assert_eq!(published(&[]), "");
        assert_eq!(published(&[Some(80)]), ": it redirects port 80");
        assert_eq!(
            published(&[Some(81), Some(80)]),
            ": it redirects ports 80, 81"
        );
        assert_eq!(published(&[Some(80), None]), "", "any port");
        let many: Vec<_> = (1..=10).map(Some).collect();
        let text = ": it redirects ports 1, 2, 3, 4, 5, 6, 7, 8 and 2 others";
        assert_eq!(published(&many), text);
        let ingress = EffectiveChain {
            family: None,
            ..chain(Hook::Prerouting, 0, marks(all, 0x539))
        };
        assert!(interferes(&plan, &ingress));
    }
}
