//! Policy routing over netlink: adds, lists and removes Underpass's ip rules and local routes.
//!
//! Uses a blocking socket with the messages of netlink-packet-route, because the plugin has no
//! async runtime.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use nft::IpFamily;
use nft::netlink::{NetlinkSocket, Protocol};

use crate::error::{RedirectError, failed};
use crate::local_route::{LO, LocalRoute, OtherRoute};
use crate::netlink::{encode, request, request_bodies};
use crate::policy_rule::{Action, PolicyRule, address_family};
use crate::raw::deletion;
use crate::rule_priorities::NamespaceRules;
use crate::state::DesiredState;

/// Maximum duration of IPv6 duplicate address detection: one probe of a second by default
/// (dad_transmits), after a random delay.
const DAD_TIMEOUT: Duration = Duration::from_millis(2500);

/// linux/rtnetlink.h
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;

/// A routing socket of the network namespace that the thread was in when opening it.
#[derive(Debug)]
pub(crate) struct Routing(pub(crate) NetlinkSocket);

impl Routing {
    pub(crate) fn open() -> Result<Self, RedirectError> {
        let socket = NetlinkSocket::open(Protocol::Route);
        socket
            .map(Self)
            .map_err(failed("cannot access policy routing over netlink"))
    }

    /// Adds the routes and rules of a plan that do not exist yet, given the existing rules, and
    /// brings up the loopback interface, which captured packets traverse.
    pub(crate) fn install(
        &self,
        desired: &DesiredState,
        observed: &[PolicyRule],
    ) -> Result<(), RedirectError> {
        self.raise_loopback()
            .map_err(failed("cannot bring up the loopback interface"))?;
        for route in &desired.routes {
            self.add_route(*route)
                .map_err(failed(&format!("cannot add {route}")))?;
        }
        self.add_rules(&desired.rules, observed)
    }

    /// Adds the rules that do not exist yet, by their priority, given the existing ones. After an
    /// error, no rule of a later priority is added.
    pub(crate) fn add_rules(
        &self,
        rules: &[PolicyRule],
        observed: &[PolicyRule],
    ) -> Result<(), RedirectError> {
        let observed: BTreeSet<&PolicyRule> = observed.iter().collect();
        let mut new: Vec<&PolicyRule> = rules.iter().filter(|r| !observed.contains(r)).collect();
        // The target of the others' `goto` comes first.
        new.sort_by_key(|r| (r.action != Action::Nop, r.priority));
        let request = |rule: &PolicyRule| {
            // With NLM_F_EXCL the kernel compares the rule with all others, so that thousands take
            // twice the time.
            let exclusive = match rule.connection() {
                Some(_) => 0,
                None => NLM_F_EXCL,
            };
            let flags = NLM_F_REQUEST | NLM_F_CREATE | exclusive;
            encode(RouteNetlinkMessage::NewRule(rule.message()), flags)
        };
        // The kernel continues after an error: a capturing rule must not be added if one that
        // precedes it is missing.
        let capturing = new.iter().position(|r| r.leads_to_proxy());
        let (before, capturing) = new.split_at(capturing.unwrap_or(new.len()));
        for rules in [before, capturing] {
            if !rules.is_empty() {
                self.change_rules(rules, request, "add", libc::EEXIST)?;
            }
        }
        Ok(())
    }

    /// Deletes the rules that exist; continues after an error and returns the first. Those that
    /// lead to the proxy go first, so that none captures what the others exempt.
    pub(crate) fn delete_rules<'r>(
        &self,
        rules: impl IntoIterator<Item = &'r PolicyRule>,
    ) -> Result<(), RedirectError> {
        let request = |rule: &PolicyRule| match rule.other.as_slice() {
            [] => encode(RouteNetlinkMessage::DelRule(rule.message()), NLM_F_REQUEST),
            body => deletion(RTM_DELRULE, body),
        };
        let mut rules: Vec<&PolicyRule> = rules.into_iter().collect();
        rules.sort_by_key(|r| !r.leads_to_proxy());
        self.change_rules(&rules, request, "delete", libc::ENOENT)
    }

    /// Sends a request for each rule; an `expected` error is none.
    fn change_rules(
        &self,
        rules: &[&PolicyRule],
        request: impl Fn(&PolicyRule) -> Vec<u8>,
        verb: &str,
        expected: i32,
    ) -> Result<(), RedirectError> {
        let requests: Vec<Vec<u8>> = rules.iter().map(|r| request(r)).collect();
        let refused = self.0.request_all(&requests);
        let mut errors = refused
            .map_err(failed(&format!("cannot {verb} ip rules")))?
            .into_iter()
            .filter(|(_, e)| e.raw_os_error() != Some(expected));
        match errors.next() {
            None => Ok(()),
            Some((index, e)) => {
                let rule = rules.get(index).map(ToString::to_string);
                let rule = rule.unwrap_or_else(|| "an ip rule".to_owned());
                Err(failed(&format!("cannot {verb} {rule}"))(e))
            }
        }
    }

    /// Deletes a route, if it exists.
    pub(crate) fn delete_route(&self, route: LocalRoute) -> Result<(), RedirectError> {
        let message = RouteNetlinkMessage::DelRoute(route.message());
        let result = self.request(message, NLM_F_REQUEST | NLM_F_ACK);
        ignore_errno(result, libc::ESRCH).map_err(failed(&format!("cannot delete {route}")))
    }

    /// Lists the rules of both families, and where Underpass's belong.
    pub(crate) fn rules(&self) -> Result<NamespaceRules, RedirectError> {
        Ok(NamespaceRules::of(self.rule_bodies()?))
    }

    /// Lists all rules of both families, as the bodies of their messages.
    fn rule_bodies(&self) -> Result<Vec<Vec<u8>>, RedirectError> {
        let mut out = Vec::new();
        for family in IpFamily::ALL {
            let mut m = RuleMessage::default();
            m.header.family = address_family(family);
            let answers = self.dump(RouteNetlinkMessage::GetRule(m));
            out.extend(answers.map_err(failed("cannot list ip rules"))?);
        }
        Ok(out)
    }

    /// Lists the routes of a table, of both families: Underpass's, and all others. The kernel
    /// applies the filters of all later dumps on the socket.
    pub(crate) fn routes(
        &self,
        table: u32,
    ) -> Result<(Vec<LocalRoute>, Vec<OtherRoute>), RedirectError> {
        let (mut known, mut other) = (Vec::new(), Vec::new());
        // Before Linux 4.20 the kernel does not filter, and lists the routes of all tables.
        let _ = netns::sockopt::filter_dumps(&self.0);
        for family in IpFamily::ALL {
            let mut m = RouteMessage::default();
            m.header.address_family = address_family(family);
            m.attributes = vec![RouteAttribute::Table(table)];
            let answers = match self.dump(RouteNetlinkMessage::GetRoute(m)) {
                Err(e) if is_errno(&e, libc::ENOENT) => continue, // no such table
                answers => answers.map_err(failed("cannot list routes"))?,
            };
            for body in answers
                .into_iter()
                .filter(|b| OtherRoute::table(b) == table)
            {
                match LocalRoute::from_body(&body) {
                    Some(route) => known.push(route),
                    None => other.push(OtherRoute::new(body)),
                }
            }
        }
        known.sort();
        other.sort();
        Ok((known, other))
    }

    /// Deletes what a plan does not have: other rules of Underpass, given those that existed before
    /// [`Self::install`], and routes in its table.
    pub(crate) fn delete_others(
        &self,
        desired: &DesiredState,
        observed: &[PolicyRule],
    ) -> Result<(), RedirectError> {
        let planned: BTreeSet<&PolicyRule> = desired.rules.iter().collect();
        let mut kept = BTreeSet::new();
        let mut unexpected: Vec<&PolicyRule> = observed.iter().collect();
        // A duplicate is unexpected as well.
        unexpected.retain(|r| !(planned.contains(r) && kept.insert(*r)));
        if !unexpected.is_empty() {
            self.delete_rules(unexpected)?;
            // The kernel does not compare everything, and may have deleted a planned rule instead.
            self.add_rules(&desired.rules, &self.rules()?.own)?;
        }
        let tables: BTreeSet<u32> = desired.routes.iter().map(|r| r.table).collect();
        for table in tables {
            let (_, other) = self.routes(table)?;
            let requests = other.iter().map(|r| deletion(RTM_DELROUTE, r.body()));
            let refused = self.0.request_all(&requests.collect::<Vec<_>>());
            let errors = refused.map_err(failed("cannot delete routes"))?.into_iter();
            if let Some((index, e)) = errors.into_iter().find(|(_, e)| !is_errno(e, libc::ESRCH)) {
                let route = other
                    .get(index)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                return Err(failed(&format!("cannot delete {route}"))(e));
            }
        }
        Ok(())
    }

    fn raise_loopback(&self) -> io::Result<()> {
        let mut m = LinkMessage::default();
        m.header.index = LO;
        m.header.flags = LinkFlags::Up;
        m.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(m), NLM_F_REQUEST | NLM_F_ACK)
            .map(drop)
    }

    /// Adds a route, replacing one with another source address. The kernel rejects a tentative
    /// source address (EINVAL); a new IPv6 address is tentative until duplicate address detection
    /// completes: about a second if enabled, an instant if not.
    fn add_route(&self, route: LocalRoute) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let deadline = Instant::now() + DAD_TIMEOUT;
        loop {
            let result = self.request(RouteNetlinkMessage::NewRoute(route.message()), flags);
            let is_tentative = matches!(&result, Err(e) if e.raw_os_error() == Some(libc::EINVAL))
                && route.source.is_ipv6();
            if !is_tentative || Instant::now() >= deadline {
                return result.map(drop);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a dump request and collects the bodies of the answers.
    pub(crate) fn dump(&self, request: RouteNetlinkMessage) -> io::Result<Vec<Vec<u8>>> {
        request_bodies(&self.0, request, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// Sends a request about one object and returns the bodies of the answers.
    pub(crate) fn get(&self, request: RouteNetlinkMessage) -> io::Result<Vec<Vec<u8>>> {
        request_bodies(&self.0, request, NLM_F_REQUEST | NLM_F_ACK)
    }

    fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        request(&self.0, message, flags)
    }
}

fn is_errno(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

fn ignore_errno<T>(result: io::Result<T>, errno: i32) -> io::Result<()> {
    match result {
        Err(e) if is_errno(&e, errno) => Ok(()),
        other => other.map(drop),
    }
}
