//! The `nat` capture: the rules of istio-cni with known defects fixed, and a guard. Written as
//! nf_tables rules, or by the programs of either iptables variant.
//!
//! The first packet of a connection is redirected to the proxy; conntrack redirects the rest.
//! Differences from istio-cni: DNS replies get their conntrack zone from the receiving socket, so
//! that forwarded DNS is unaffected; all of loopback is excluded, for TCP and UDP; connections
//! opened before conntrack was active are not mistaken for new ones; and a guard refuses
//! connections that should have been redirected but were not.

pub(crate) mod table;
pub(crate) mod uncaptured;
pub(crate) mod xtables;

use crate::driver::{ApplyOutcome, Driver, Exceptions};
use crate::error::{RedirectError, iptables_failed};
use crate::iptables_program::Variant;
use crate::netfilter::{NftSession, read_xtables, write_netfilter};
use crate::plan::{ExistingConnections, Plan};
use crate::remove::remove;
use crate::return_path;
use crate::sockets::{abort_open_connections, captured_connections};
use crate::state::DesiredState;
use crate::target::Target;

/// The `nat` capture, by what writes its rules.
pub(crate) enum Nat {
    /// nf_tables, over netlink.
    NfTables,
    /// The programs of an iptables variant.
    Iptables(Variant),
}

impl Driver for Nat {
    fn render(&self, plan: &Plan, _: &Exceptions) -> DesiredState {
        let (table, xtables) = match self {
            Self::NfTables => (Some(table::table(plan)), Vec::new()),
            Self::Iptables(_) => (None, xtables::tables(plan)),
        };
        DesiredState {
            table,
            xtables,
            rules: return_path::policy_rules(plan),
            routes: table::routes(plan),
        }
    }

    fn apply(&self, target: &Target, plan: &Plan) -> Result<ApplyOutcome, RedirectError> {
        let mut session = NftSession::default();
        let is_first = is_first(&mut session, target)?;
        let applied = self.install(&mut session, target, plan, is_first)?;
        session.close(); // the plugin exits soon
        Ok(applied)
    }

    /// Like [`apply`](Driver::apply), with the guard written last.
    fn join(&self, target: &Target, plan: &Plan) -> Result<ApplyOutcome, RedirectError> {
        let mut session = NftSession::default();
        let is_first = is_first(&mut session, target)?;
        if matches!(self, Self::NfTables) && !plan.adopt {
            session.replace_table(&table::joining_table(plan))?;
        }
        self.install(&mut session, target, plan, is_first)
    }

    fn repair(&self, target: &Target, plan: &Plan, _: &Exceptions) -> Result<(), RedirectError> {
        self.write(&mut NftSession::default(), target, plan)
    }

    fn leave(
        &self,
        target: &Target,
        plan: &Plan,
        _: &Exceptions,
        keep_return_path: bool,
    ) -> Result<usize, RedirectError> {
        if let Self::Iptables(variant) = self {
            variant.require().map_err(iptables_failed)?;
        }
        let captured = captured_connections(plan)?;
        if captured.is_empty() && !keep_return_path {
            remove()?;
            return Ok(0);
        }
        let Target { routing, rules, .. } = target;
        routing.add_rules(&return_path::policy_rules(plan), rules)?;
        let mut session = NftSession::default();
        match self {
            Self::NfTables => {
                let table = table::leaving_table(plan);
                if session.read_table()?.as_ref() != Some(&table) {
                    session.replace_table(&table)?;
                }
            }
            Self::Iptables(variant) => {
                let present = read_xtables(&session.existing_tables()?)?;
                let mut tables = xtables::leaving_tables(plan);
                // A missing table was removed by an earlier call.
                tables.retain(|t| present.iter().any(|p| p.same_table(t) && p != t));
                variant
                    .restore(&tables, &present)
                    .map_err(iptables_failed)?;
            }
        }
        Ok(captured.len())
    }
}

impl Nat {
    fn install(
        &self,
        session: &mut NftSession,
        target: &Target,
        plan: &Plan,
        is_first: bool,
    ) -> Result<ApplyOutcome, RedirectError> {
        self.write(session, target, plan)?;
        match plan.existing_connections {
            ExistingConnections::Reset if is_first => Ok(ApplyOutcome {
                exempted: Exceptions::new(),
                aborted: abort_open_connections(&plan.addresses)?,
            }),
            _ => Ok(ApplyOutcome {
                exempted: uncaptured::uncaptured(plan)?,
                aborted: 0,
            }),
        }
    }

    fn write(
        &self,
        session: &mut NftSession,
        target: &Target,
        plan: &Plan,
    ) -> Result<(), RedirectError> {
        let Target { routing, rules, .. } = target;
        let desired = self.render(plan, &Exceptions::new());
        write_netfilter(session, &desired, self.variant(), plan.adopt)?;
        routing.install(&desired, rules)?;
        routing.delete_others(&desired, rules)
    }

    fn variant(&self) -> Option<Variant> {
        match self {
            Self::NfTables => None,
            Self::Iptables(variant) => Some(*variant),
        }
    }
}

/// Whether the namespace has no rules of an earlier plan. Connections that are open then are older
/// than the join.
fn is_first(session: &mut NftSession, target: &Target) -> Result<bool, RedirectError> {
    Ok(target.rules.is_empty() && !session.has_table()?)
}
