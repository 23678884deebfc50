//! Where Underpass's ip rules are among those of other programs: ahead of all that decide where
//! captured packets go, such as source-based routing, VPNs and secondary networks add them.
//!
//! Packets that are not captured, those of the proxy included, continue behind Underpass's rules,
//! so that the rules of other programs route them as they would without Underpass.

use std::collections::BTreeSet;

use netlink_packet_core::Parseable;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::plan::{RETURN_MARK, TABLE};
use crate::policy_rule::{Action, PolicyRule, TABLE_MAIN, is_marked_as_own};

/// The priority of the kernel's rule for the main table.
const MAIN: u32 = 32_766;

/// The priorities of Underpass's ip rules: four numbers in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RulePriorities {
    first: u16,
    /// Whether rules of other programs, which may divert packets, follow ahead of the main table.
    has_followers: bool,
}

impl RulePriorities {
    const COUNT: u32 = 4;
    /// Just ahead of the main table.
    const DEFAULT: Self = Self {
        first: 32_762,
        has_followers: false,
    };

    /// The priorities that begin with this one.
    pub(crate) fn from(first: u32) -> Option<Self> {
        let first = u16::try_from(first).ok()?;
        let has_followers = false;
        Some(Self {
            first,
            has_followers,
        })
    }

    /// The priority of exceptions from the capture.
    pub(crate) fn exception(self) -> u32 {
        self.first.into()
    }

    /// The priority of the rule for the proxy's packets.
    pub(crate) fn proxy(self) -> u32 {
        self.exception() + 1
    }

    /// The priority of the capturing rules.
    pub(crate) fn capture(self) -> u32 {
        self.exception() + 2
    }

    /// The priority of the rule where packets continue that are not captured.
    pub(crate) fn resume(self) -> u32 {
        self.exception() + 3
    }

    /// What happens to packets that are not captured. With a `goto` in a namespace, the kernel
    /// compares every rule that is deleted with all others, so that there is none without need.
    pub(crate) fn uncaptured(self) -> Action {
        match self.has_followers {
            true => Action::Goto(self.resume()),
            false => Action::Lookup(TABLE_MAIN),
        }
    }

    /// Whether there is a rule where packets continue that are not captured.
    pub(crate) fn has_resume(self) -> bool {
        self.has_followers
    }

    fn contains(self, priority: u32) -> bool {
        (self.exception()..=self.resume()).contains(&priority)
    }

    /// The highest free priorities that are all below `limit`.
    fn below(limit: u32, taken: &BTreeSet<u32>) -> Option<Self> {
        let firsts = (1..=limit.checked_sub(Self::COUNT)?).rev();
        let is_free = |p: &Self| taken.range(p.exception()..=p.resume()).next().is_none();
        firsts.filter_map(Self::from).find(is_free)
    }
}

impl Default for RulePriorities {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The ip rules of a namespace, of both families.
pub(crate) struct NamespaceRules {
    /// Underpass's rules, and what else is at their priorities.
    pub(crate) own: Vec<PolicyRule>,
    /// The rules of other programs, with the bodies of their messages.
    pub(crate) others: Vec<(PolicyRule, Vec<u8>)>,
    /// Where Underpass's rules are or should be.
    pub(crate) priorities: RulePriorities,
}

impl NamespaceRules {
    /// Reads the bodies of all rules of a namespace.
    ///
    /// Underpass's rules stay where they are unless a rule of another program was added ahead, and
    /// whatever is added among them is part of them. When they are installed, they leave the
    /// priorities of other rules alone.
    pub(crate) fn of(bodies: Vec<Vec<u8>>) -> Self {
        let read = |body: Vec<u8>| (PolicyRule::from_body(&body), body);
        let rules: Vec<(PolicyRule, Vec<u8>)> = bodies.into_iter().map(read).collect();
        let firsts = rules.iter().filter_map(|(r, _)| {
            let leads = r.captures() || r.returns();
            leads.then(|| r.priority.checked_sub(2)).flatten()
        });
        let installed = firsts.min().and_then(RulePriorities::from);
        let at_them = rules.iter().filter(|(r, body)| {
            is_marked_as_own(body) && installed.is_some_and(|p| p.contains(r.priority))
        });
        let present: BTreeSet<u32> = at_them.map(|(r, _)| r.priority).collect();
        let (first, last) = (present.first().copied(), present.last().copied());
        let is_own = |(rule, body): &(PolicyRule, Vec<u8>)| {
            let is_among = first <= Some(rule.priority) && Some(rule.priority) <= last;
            (is_among && first.is_some())
                || is_marked_as_own(body)
                || rule.action == Action::Lookup(TABLE)
                || is_of_istio(rule)
        };
        let (own, others): (Vec<_>, Vec<_>) = rules.into_iter().partition(is_own);
        let diverting = others.iter().filter(|(_, body)| diverts(body, true));
        let limit = diverting.map(|(r, _)| r.priority).chain([MAIN]).min();
        let limit = limit.unwrap_or(MAIN);
        let taken: BTreeSet<u32> = others.iter().map(|(r, _)| r.priority).collect();
        let stays = installed.filter(|_| last < Some(limit));
        let priorities = stays
            .or_else(|| RulePriorities::below(limit, &taken))
            .or(installed) // nothing is ahead of priority 0
            .or_else(|| RulePriorities::below(MAIN, &taken));
        let mut priorities = priorities.unwrap_or_default();
        priorities.has_followers = limit < MAIN;
        let mut own: Vec<PolicyRule> = own.into_iter().map(|(rule, _)| rule).collect();
        own.sort();
        Self {
            own,
            others,
            priorities,
        }
    }
}

/// Whether it is the rule of istio-cni, `fwmark 0x111/0xfff lookup 100`, which Underpass replaces
/// when it adopts a pod.
fn is_of_istio(rule: &PolicyRule) -> bool {
    rule.mark == Some((RETURN_MARK.value, RETURN_MARK.mask))
        && rule.action == Action::Lookup(istio::ROUTING_TABLE)
}

/// Whether an ip rule decides where packets of the pod's sockets go that are captured: TCP, and UDP
/// as well `with_udp`.
pub(crate) fn diverts(body: &[u8], with_udp: bool) -> bool {
    const TABLE_LOCAL: u32 = 255;
    let Ok(m) = RuleMessage::parse(body) else {
        return true;
    };
    if m.header.flags.contains(RuleFlags::Invert) {
        return true;
    }
    let rule = PolicyRule::from_body(body);
    let is_captured = |protocol: IpProtocol| match protocol {
        IpProtocol::Tcp => true,
        IpProtocol::Udp => with_udp,
        _ => false,
    };
    let excludes = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Iifname(name) => name != "lo",
        RuleAttribute::Oifname(_) => true, // the guard refuses what is bound to an interface
        RuleAttribute::IpProtocol(protocol) => !is_captured(*protocol),
        RuleAttribute::L3MDev(is_vrf) => *is_vrf,
        _ => false,
    };
    // Applications' packets have no mark; those with one are blocked by the guard.
    let needs_mark = rule.mark.is_some_and(|(value, mask)| value & mask != 0);
    let is_harmless = match m.header.action {
        RuleAction::Nop => true,
        RuleAction::ToTable => rule.action == Action::Lookup(TABLE_LOCAL),
        _ => false,
    };
    !(needs_mark || is_harmless || m.attributes.iter().any(excludes))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::AddressFamily;

    use super::*;
    use crate::plan::Plan;
    use crate::raw::body_of;
    use crate::routed::table::policy_rules;

    fn foreign(priority: u32, attributes: &[RuleAttribute]) -> Vec<u8> {
        let mut m = RuleMessage::default();
        m.header.family = AddressFamily::Inet;
        m.header.action = RuleAction::ToTable;
        m.attributes = [RuleAttribute::Priority(priority), RuleAttribute::Table(101)].into();
        m.attributes.extend_from_slice(attributes);
        body_of(&m)
    }

    fn from(priority: u32) -> Vec<u8> {
        foreign(priority, &[RuleAttribute::Source([10, 0, 0, 1].into())])
    }

    fn own(first: u32) -> Vec<Vec<u8>> {
        let plan = Plan {
            priorities: RulePriorities::from(first).unwrap(),
            ..Plan::for_pod([[10, 0, 0, 1].into()])
        };
        let rules = policy_rules(&plan).into_iter();
        rules.map(|r| body_of(&r.message())).collect()
    }

    fn first_of(bodies: &[Vec<u8>]) -> u32 {
        NamespaceRules::of(bodies.to_vec()).priorities.exception()
    }

    #[test]
    fn the_rules_are_installed_ahead_of_all_that_divert_and_move_when_one_is_added_ahead() {
        let iif = |priority| foreign(priority, &[RuleAttribute::Iifname("eth1".into())]);
        for (others, expected) in [
            (vec![], 32_762),
            (vec![from(MAIN)], 32_762),
            (vec![from(32_765)], 32_761),
            (vec![from(32_765), from(32_764)], 32_760),
            (vec![from(512), from(1024)], 508),
            (vec![iif(100)], 32_762),
            (vec![iif(32_763)], 32_759),
            (vec![from(1000), iif(998), iif(995)], 991),
        ] {
            assert_eq!(first_of(&others), expected);
            let installed = [own(expected), others].concat();
            let found = NamespaceRules::of(installed.clone());
            assert_eq!(found.priorities.exception(), expected, "they stay");
            assert_eq!(found.own.len(), own(expected).len());
            let ahead = [installed.clone(), vec![from(expected - 1)]].concat();
            assert_eq!(first_of(&ahead), expected - 5);
            let behind = [installed, vec![from(expected + 4)]].concat();
            assert_eq!(first_of(&behind), expected);
        }
    }

    #[test]
    fn what_is_among_the_rules_or_marked_as_theirs_belongs_to_them() {
        let among = [own(200), vec![from(201)]].concat();
        let found = NamespaceRules::of(among.clone());
        assert_eq!(found.priorities.exception(), 200);
        assert_eq!((found.own.len(), found.others.len()), (among.len(), 0));
        let elsewhere = [own(200), vec![own(400).remove(0)]].concat();
        assert_eq!(
            NamespaceRules::of(elsewhere.clone()).own.len(),
            elsewhere.len()
        );
        let found = NamespaceRules::of(vec![from(201)]);
        assert_eq!((found.own.len(), found.others.len()), (0, 1));
    }

    /// As the rules of `nat`, which has no exceptions.
    #[test]
    fn a_rule_between_the_first_priority_and_the_first_rule_is_ahead() {
        let only = [own(200).remove(2)];
        assert_eq!(PolicyRule::from_body(&only[0]).priority, 202);
        assert_eq!(first_of(&only), 200);
        let ahead = [only.to_vec(), vec![from(201)]].concat();
        let found = NamespaceRules::of(ahead);
        assert_eq!((found.own.len(), found.priorities.exception()), (1, 197));
    }

    #[test]
    fn what_is_not_captured_skips_no_rule_of_another_program() {
        let uncaptured = |bodies: &[_]| NamespaceRules::of(bodies.to_vec()).priorities.uncaptured();
        assert_eq!(uncaptured(&[]), Action::Lookup(TABLE_MAIN));
        assert_eq!(uncaptured(&[from(MAIN)]), Action::Lookup(TABLE_MAIN));
        assert_eq!(uncaptured(&[from(1000)]), Action::Goto(999));
        let installed = [own(200), vec![from(1000)]].concat();
        assert_eq!(uncaptured(&installed), Action::Goto(203));
    }

    #[test]
    fn nothing_is_ahead_of_the_first_priorities() {
        for first in [0, 1, 4] {
            assert_eq!(first_of(&[from(first)]), 32_762);
            assert_eq!(first_of(&[own(300), vec![from(first)]].concat()), 300);
        }
        assert_eq!(first_of(&[from(5)]), 1);
    }

    #[test]
    fn only_rules_that_match_captured_packets_divert() {
        let with = |attributes: &[_]| foreign(100, attributes);
        let [tcp, udp] = [IpProtocol::Tcp, IpProtocol::Udp].map(RuleAttribute::IpProtocol);
        let mark = [RuleAttribute::FwMark(1), RuleAttribute::FwMask(1)];
        let mut prohibit = RuleMessage::default();
        prohibit.header.family = AddressFamily::Inet;
        prohibit.header.action = RuleAction::Prohibit;
        let mut nop = prohibit.clone();
        nop.header.action = RuleAction::Nop;
        for (body, expected) in [
            (with(&[]), true),
            (with(&[tcp]), true),
            (body_of(&prohibit), true),
            (from(100), true),
            (with(&[RuleAttribute::Iifname("lo".into())]), true),
            (with(&[udp]), false),
            (with(&[RuleAttribute::Iifname("eth1".into())]), false),
            (with(&mark), false),
            (with(&[RuleAttribute::Table(255)]), false),
            (body_of(&nop), false),
        ] {
            assert_eq!(diverts(&body, false), expected, "{body:?}");
        }
        assert!(diverts(
            &with(&[RuleAttribute::IpProtocol(IpProtocol::Udp)]),
            true
        ));
    }
}
