//! Removes all redirection, whatever installed it.

use crate::error::{RedirectError, iptables_failed, or_nothing};
use crate::iptables_program::Variant;
use crate::netfilter::NftSession;
use crate::plan::TABLE;
use crate::routing::Routing;
use crate::xtables::PREFIX;

/// The result of removing redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoveOutcome {
    /// Whether there was any Underpass redirection.
    pub found: bool,
}

/// Removes all Underpass redirection, of any capture kind.
///
/// # Errors
/// [`RedirectError`] with everything that could not be removed; the rest is removed.
pub fn remove() -> Result<RemoveOutcome, RedirectError> {
    let (mut errors, mut found) = (Vec::new(), false);
    let mut session = NftSession::default();
    let parts = [
        NftSession::remove_table,
        remove_xtables,
        |_: &mut NftSession| remove_rules(),
        |_: &mut NftSession| remove_routes(),
    ];
    for part in parts {
        match part(&mut session) {
            Ok(removed) => found |= removed,
            Err(e) => errors.push(e),
        }
    }
    match errors.len() {
        0 => Ok(RemoveOutcome { found }),
        1 => Err(errors.remove(0)),
        _ => Err(RedirectError::Multiple(errors)),
    }
}

// Each of these removes one part; it returns whether there was any.

fn remove_xtables(session: &mut NftSession) -> Result<bool, RedirectError> {
    let (existing, mut found) = (session.existing_tables()?, false);
    let mut result = Ok(());
    for variant in Variant::ALL {
        match variant.remove(PREFIX, &existing) {
            Ok(removed) => found |= removed,
            Err(e) => result = Err(iptables_failed(e)),
        }
    }
    result.map(|()| found)
}

fn remove_rules() -> Result<bool, RedirectError> {
    let routing = Routing::open()?;
    let mut rules = or_nothing(routing.rules().map(|r| r.own))?;
    rules.retain(|r| r.other.is_empty()); // others have another owner
    routing.delete_rules(&rules)?;
    Ok(!rules.is_empty())
}

fn remove_routes() -> Result<bool, RedirectError> {
    let routing = Routing::open()?;
    let routes = or_nothing(routing.routes(TABLE))?.0;
    let deleted: Vec<_> = routes.iter().map(|r| routing.delete_route(*r)).collect();
    deleted.into_iter().collect::<Result<(), _>>()?;
    Ok(!routes.is_empty())
}
