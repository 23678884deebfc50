//! Reads back all redirection, whatever installed it, and all else that decides about packets. Each
//! kind of object is read once, for everything that depends on it.

use nft::Chains;

use crate::bypass::{self, Bypass};
use crate::error::RedirectError;
use crate::foreign;
use crate::iptables_program::ExistingTables;
use crate::links::{Link, below_the_stack};
use crate::netfilter::{NftSession, read_xtables};
use crate::plan::{Plan, TABLE};
use crate::routing::Routing;
use crate::rule::TABLE_NAME;
use crate::rule_priorities::NamespaceRules;
use crate::state::ObservedState;
use crate::surroundings::Surroundings;

/// Reads back the redirection in the namespace, of any capture kind.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn read_back() -> Result<ObservedState, RedirectError> {
    Reading::begin()?.observed()
}

/// Finds what may change where the packets go that a plan captures, in the network namespace of the
/// calling thread.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn find_bypasses(plan: &Plan) -> Result<Vec<Bypass>, RedirectError> {
    Reading::begin()?.bypasses(plan)
}

/// What a verification reads in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Examination {
    /// The result of [`read_back`](fn@read_back).
    pub observed: ObservedState,
    /// The result of [`find_bypasses`].
    pub bypasses: Result<Vec<Bypass>, RedirectError>,
}

/// Reads what [`read_back`](fn@read_back) and [`find_bypasses`] return, in less time than both.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer about the redirection.
pub fn examine(plan: &Plan) -> Result<Examination, RedirectError> {
    let mut reading = Reading::begin()?;
    let observed = reading.observed()?;
    let bypasses = reading.bypasses(plan);
    Ok(Examination { observed, bypasses })
}

/// What several results depend on.
struct Reading {
    session: NftSession,
    routing: Routing,
    chains: Chains,
    existing: ExistingTables,
    rules: NamespaceRules,
    links: Vec<Link>,
}

impl Reading {
    fn begin() -> Result<Self, RedirectError> {
        let mut session = NftSession::default();
        let chains = session.request(Chains::read)?;
        let routing = Routing::open()?;
        Ok(Self {
            existing: ExistingTables::read(chains.names()),
            rules: routing.rules()?,
            links: Link::list(&routing)?,
            session,
            routing,
            chains,
        })
    }

    fn observed(&mut self) -> Result<ObservedState, RedirectError> {
        let chains = &self.chains;
        let dump = |socket: &_| nft::dump_table_with(socket, TABLE_NAME, chains);
        let (routing, priorities) = (&self.routing, self.rules.priorities);
        let surroundings = Surroundings::read(routing, &self.links, priorities)?;
        let (routes, other_routes) = routing.routes(TABLE)?;
        Ok(ObservedState {
            table: self.session.request(dump)?,
            foreign: foreign::find_in(&self.existing),
            xtables: read_xtables(&self.existing)?,
            rules: self.rules.own.clone(),
            routes,
            other_routes,
            surroundings,
        })
    }

    fn bypasses(&mut self, plan: &Plan) -> Result<Vec<Bypass>, RedirectError> {
        let chains = &self.chains;
        let own = bypass::own_objects(plan);
        let effects = |socket: &_| nft::effective_chains(socket, chains, own);
        bypass::find(
            plan,
            below_the_stack(&self.routing, &self.links)?,
            &self.rules,
            self.session.request(effects)?,
            &self.existing,
        )
    }
}
