//! Reads back all redirection, whatever installed it.

use crate::error::RedirectError;
use crate::foreign;
use crate::netfilter::{NftSession, read_xtables};
use crate::plan::TABLE;
use crate::routing::Routing;
use crate::rule::TABLE_NAME;
use crate::state::ObservedState;
use crate::surroundings::Surroundings;

/// Reads back the redirection in the namespace, of any capture kind.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn read_back() -> Result<ObservedState, RedirectError> {
    let mut session = NftSession::default();
    let socket = session.open()?;
    let routing = Routing::open()?;
    let chains = nft::chain_names(socket)?;
    let (routes, other_routes) = routing.routes(TABLE)?;
    let rules = routing.rules()?;
    Ok(ObservedState {
        table: nft::dump_table(socket, TABLE_NAME)?,
        foreign: foreign::find_in(&chains),
        xtables: read_xtables(&chains)?,
        rules: rules.own,
        routes,
        other_routes,
        surroundings: Surroundings::read(rules.priorities)?,
    })
}
