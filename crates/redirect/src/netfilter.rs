//! Writes and reads the netfilter part of a pod's redirection: the table `inet underpass`, and the
//! iptables chains of either variant.

use nft::{Batch, ChainName, Socket, Table};

use crate::error::{RedirectError, iptables_failed, or_nothing};
use crate::foreign;
use crate::iptables_program::Variant;
use crate::rule::TABLE_NAME;
use crate::state::DesiredState;
use crate::xtables::{PREFIX, XtablesRules};

/// A change of a pod's nf_tables rules, in one or more transactions.
///
/// Closing a socket after a deletion waits until the kernel has freed the objects, and no other
/// transaction of the namespace is committed meanwhile: about 10 ms, and seconds on a loaded node.
/// The sockets are therefore closed when the whole change is complete, in the background.
#[derive(Default)]
pub(crate) struct NftSession {
    sockets: Vec<Socket>,
}

/// Replaces Underpass's rules, and those of istio-cni if the pod is `adopt`ed. `variant` writes the
/// iptables part, if there is one.
pub(crate) fn write_netfilter(
    session: &mut NftSession,
    desired: &DesiredState,
    variant: Option<Variant>,
    adopt: bool,
) -> Result<(), RedirectError> {
    match &desired.table {
        Some(table) if adopt => session.replace_table_and_istio_rules(table)?,
        Some(table) => session.replace_table(table)?,
        None => drop(remove_table()?),
    }
    let chains = chain_names()?;
    for other in Variant::ALL.into_iter().filter(|v| variant != Some(*v)) {
        other.remove(PREFIX, &chains).map_err(iptables_failed)?;
    }
    if let Some(variant) = variant {
        let present = read_xtables(&chains)?;
        variant
            .restore(&desired.xtables, &present)
            .map_err(iptables_failed)?;
    }
    if adopt {
        if desired.table.is_none() {
            remove_istio_rules()?;
        }
        foreign::remove_legacy()?;
    }
    Ok(())
}

impl NftSession {
    /// Opens a socket that the session closes. One that reported an error is not used again,
    /// because it may hold further answers.
    pub(crate) fn open(&mut self) -> Result<&Socket, RedirectError> {
        self.sockets.push(Socket::open()?);
        Ok(self.sockets.last().expect("was just added"))
    }

    /// Reads the current Underpass table, if it exists.
    pub(crate) fn read_table(&mut self) -> Result<Option<Table>, RedirectError> {
        Ok(nft::dump_table(self.open()?, TABLE_NAME)?)
    }

    /// Writes the table in one transaction, which deletes an old table if there is one.
    ///
    /// Whether there is one is asked first. To revert a rejected transaction, the kernel waits
    /// until no processor uses its rules any more, which takes seconds on a loaded node.
    pub(crate) fn replace_table(&mut self, table: &Table) -> Result<(), RedirectError> {
        let socket = self.open()?;
        let mut batch = Batch::new(TABLE_NAME);
        if nft::table_exists(socket, TABLE_NAME)? {
            batch.delete_table();
        }
        batch.create_table(table);
        match batch.commit(socket) {
            // Another process created or deleted it meanwhile.
            Err(e) if matches!(e.errno(), Some(libc::EEXIST | libc::ENOENT)) => {}
            result => return Ok(result?),
        }
        let mut batch = Batch::new(TABLE_NAME);
        batch.ensure_table().delete_table().create_table(table);
        Ok(batch.commit(self.open()?)?)
    }

    /// Like [`Self::replace_table`], unless a table of the namespace was changed since this
    /// generation of its rules. Returns whether the table was replaced.
    pub(crate) fn replace_table_of(
        &mut self,
        generation: u32,
        table: &Table,
    ) -> Result<bool, RedirectError> {
        let mut batch = Batch::new(TABLE_NAME);
        batch.for_generation(generation);
        batch.delete_table().create_table(table);
        match batch.commit(self.open()?) {
            Err(e) if e.errno() == Some(libc::ERESTART) => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }

    /// Like [`Self::replace_table`], and removes Istio's nf_tables rules in the same transaction.
    fn replace_table_and_istio_rules(&mut self, table: &Table) -> Result<(), RedirectError> {
        let socket = self.open()?;
        let mut batch = Batch::new(TABLE_NAME);
        foreign::remove_with(&mut batch, socket)?;
        if nft::table_exists(socket, TABLE_NAME)? {
            batch.delete_table();
        }
        batch.create_table(table);
        Ok(batch.commit(socket)?)
    }
}

impl Drop for NftSession {
    fn drop(&mut self) {
        let sockets = std::mem::take(&mut self.sockets);
        if !sockets.is_empty() {
            let _ = std::thread::Builder::new()
                .name("nft-close".into())
                .spawn(move || drop(sockets));
        }
    }
}

/// Removes Istio's nf_tables rules, on a kernel that has nf_tables.
fn remove_istio_rules() -> Result<(), RedirectError> {
    let mut session = NftSession::default();
    let Ok(socket) = session.open() else {
        return Ok(());
    };
    let mut batch = Batch::new(TABLE_NAME);
    foreign::remove_with(&mut batch, socket)?;
    Ok(batch.commit(socket)?)
}

/// Deletes the table, if it exists and the kernel has nf_tables; returns whether it existed.
pub(crate) fn remove_table() -> Result<bool, RedirectError> {
    let mut session = NftSession::default();
    let Ok(socket) = session.open() else {
        return Ok(false);
    };
    if !nft::table_exists(socket, TABLE_NAME)? {
        return Ok(false);
    }
    let mut batch = Batch::new(TABLE_NAME);
    batch.delete_table();
    match batch.commit(socket) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
        result => Ok(result.map(|()| true)?),
    }
}

/// Lists all nf_tables chains in the namespace; empty on a kernel without nf_tables.
pub(crate) fn chain_names() -> Result<Vec<ChainName>, RedirectError> {
    let mut session = NftSession::default();
    or_nothing(session.open().and_then(|s| Ok(nft::chain_names(s)?)))
}

/// Reads Underpass's iptables rules of both variants; `chains` are all nf_tables chains.
///
/// There are none of a variant whose programs are missing or fail: Underpass would have needed them
/// to write the rules. A pod whose capture needs them then lacks its rules, and the repair reports
/// the programs' error.
pub(crate) fn read_xtables(chains: &[ChainName]) -> Result<Vec<XtablesRules>, RedirectError> {
    let mut out = Vec::new();
    for variant in Variant::ALL {
        let found = variant.list(PREFIX, chains).map_err(iptables_failed);
        out.extend(or_nothing(found)?);
    }
    out.sort();
    Ok(out)
}
