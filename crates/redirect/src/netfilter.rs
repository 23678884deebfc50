//! Writes and reads the netfilter part of a pod's redirection: the table `inet underpass`, and the
//! iptables chains of either variant.

use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nft::{Batch, Chains, NftError, Socket, Table};

use crate::error::{RedirectError, iptables_failed, or_nothing};
use crate::foreign;
use crate::iptables_program::{ExistingTables, Variant};
use crate::rule::TABLE_NAME;
use crate::state::DesiredState;
use crate::xtables::{PREFIX, XtablesRules};

/// A change of a pod's nf_tables rules in one or more transactions, or a reading of them.
///
/// Closing a socket after a deletion, by any process, waits until the kernel has freed the objects,
/// and no other transaction of the namespace is committed meanwhile: about 10 ms, and seconds on a
/// loaded node. The sockets are therefore closed when the whole change is complete, in the
/// background.
#[derive(Default)]
pub(crate) struct NftSession {
    /// The socket for the next request. One that reported an error is not used again, because it
    /// may hold further answers.
    socket: Option<Socket>,
    used: Vec<Socket>,
    /// Whether a transaction may have deleted something.
    has_deleted: bool,
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
        None => drop(session.remove_table()?),
    }
    let existing = session.existing_tables()?;
    for other in Variant::ALL.into_iter().filter(|v| variant != Some(*v)) {
        other.remove(PREFIX, &existing).map_err(iptables_failed)?;
    }
    if let Some(variant) = variant {
        let present = read_xtables(&existing)?;
        variant
            .restore(&desired.xtables, &present)
            .map_err(iptables_failed)?;
    }
    if adopt {
        if desired.table.is_none() {
            session.remove_istio_rules()?;
        }
        foreign::remove_legacy()?;
    }
    Ok(())
}

impl NftSession {
    /// Sends requests on a socket that the session closes.
    pub(crate) fn request<T>(
        &mut self,
        requests: impl FnOnce(&Socket) -> Result<T, NftError>,
    ) -> Result<T, NftError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open()?,
        };
        let result = requests(&socket);
        match result {
            Ok(_) => self.socket = Some(socket),
            Err(_) => self.used.push(socket),
        }
        result
    }

    fn commit(&mut self, batch: Batch) -> Result<(), NftError> {
        self.has_deleted |= batch.deletes();
        self.request(|socket| batch.commit(socket))
    }

    /// Reads the current Underpass table, if it exists.
    pub(crate) fn read_table(&mut self) -> Result<Option<Table>, RedirectError> {
        if !self.has_table()? {
            return Ok(None);
        }
        Ok(self.request(|socket| nft::dump_table(socket, TABLE_NAME))?)
    }

    /// Whether there is an Underpass table.
    pub(crate) fn has_table(&mut self) -> Result<bool, NftError> {
        self.request(|socket| nft::table_exists(socket, TABLE_NAME))
    }

    /// Finds the tables in which iptables rules may be, also on a kernel without nf_tables.
    pub(crate) fn existing_tables(&mut self) -> Result<ExistingTables, RedirectError> {
        let chains = or_nothing(self.request(Chains::read))?;
        Ok(ExistingTables::read(chains.names()))
    }

    /// Writes the table in one transaction, which deletes an old table if there is one.
    ///
    /// Whether there is one is asked first. To revert a rejected transaction, the kernel waits
    /// until no processor uses its rules any more, which takes seconds on a loaded node.
    pub(crate) fn replace_table(&mut self, table: &Table) -> Result<(), RedirectError> {
        let mut batch = Batch::new(TABLE_NAME);
        if self.has_table()? {
            batch.delete_table();
        }
        batch.create_table(table);
        match self.commit(batch) {
            // Another process created or deleted it meanwhile.
            Err(e) if matches!(e.errno(), Some(libc::EEXIST | libc::ENOENT)) => {}
            result => return Ok(result?),
        }
        let mut batch = Batch::new(TABLE_NAME);
        batch.ensure_table().delete_table().create_table(table);
        Ok(self.commit(batch)?)
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
        match self.commit(batch) {
            Err(e) if e.errno() == Some(libc::ERESTART) => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }

    /// Like [`Self::replace_table`], and removes Istio's nf_tables rules in the same transaction.
    fn replace_table_and_istio_rules(&mut self, table: &Table) -> Result<(), RedirectError> {
        let mut batch = Batch::new(TABLE_NAME);
        self.request(|socket| foreign::remove_with(&mut batch, socket))?;
        if self.has_table()? {
            batch.delete_table();
        }
        batch.create_table(table);
        Ok(self.commit(batch)?)
    }

    /// Removes Istio's nf_tables rules, on a kernel that has nf_tables.
    fn remove_istio_rules(&mut self) -> Result<(), RedirectError> {
        if !self.opens() {
            return Ok(());
        }
        let mut batch = Batch::new(TABLE_NAME);
        self.request(|socket| foreign::remove_with(&mut batch, socket))?;
        Ok(self.commit(batch)?)
    }

    /// Deletes the table, if it exists and the kernel has nf_tables; returns whether it existed.
    pub(crate) fn remove_table(&mut self) -> Result<bool, RedirectError> {
        if !self.opens() || !self.has_table()? {
            return Ok(false);
        }
        let mut batch = Batch::new(TABLE_NAME);
        batch.delete_table();
        match self.commit(batch) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }

    /// Whether the kernel has netlink sockets of netfilter.
    fn opens(&mut self) -> bool {
        self.request(|_| Ok(())).is_ok()
    }

    /// Closes the sockets at once, unless the session has deleted something. For a process that is
    /// about to exit, which closes them in any case.
    pub(crate) fn close(mut self) {
        if !self.has_deleted {
            self.socket = None;
            self.used.clear();
        }
    }
}

impl Drop for NftSession {
    fn drop(&mut self) {
        self.used.extend(self.socket.take());
        if !self.used.is_empty() {
            close_in_background(std::mem::take(&mut self.used));
        }
    }
}

/// Passes sockets to the thread that closes them, which starts with the first.
fn close_in_background(sockets: Vec<Socket>) {
    static TO_CLOSE: LazyLock<Sender<Vec<Socket>>> = LazyLock::new(|| {
        let (sender, sockets) = channel();
        let close = move || sockets.into_iter().for_each(drop);
        let thread = thread::Builder::new().name("nft-close".into());
        let _ = thread.spawn(close); // without it, the sender closes them
        sender
    });
    let _ = TO_CLOSE.send(sockets);
}

/// Reads Underpass's iptables rules of both variants.
///
/// There are none of a variant whose programs are missing or fail: Underpass would have needed them
/// to write the rules. A pod whose capture needs them then lacks its rules, and the repair reports
/// the programs' error.
pub(crate) fn read_xtables(existing: &ExistingTables) -> Result<Vec<XtablesRules>, RedirectError> {
    let mut out = Vec::new();
    for variant in Variant::ALL {
        let found = variant.list(PREFIX, existing).map_err(iptables_failed);
        out.extend(or_nothing(found)?);
    }
    out.sort();
    Ok(out)
}
