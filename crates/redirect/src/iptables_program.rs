//! The only place that runs a program of the host: the iptables backend of the `nat` capture.

#![expect(clippy::disallowed_types, reason = "the iptables backend is the one that runs a host program")]

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};

use iptables::IPTables;
use nft::{ChainName, Family};

use crate::plan::CaptureKind;
use crate::xtables::{TABLES, XtablesRules};

/// Which of the two iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(crate) const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(crate) fn of(kind: CaptureKind) -> Option<Self> {
        match kind {
            CaptureKind::NatIptablesNft => Some(Self::Nft),
            CaptureKind::NatIptablesLegacy => Some(Self::Legacy),
            CaptureKind::Routed | CaptureKind::Nat => None,
        }
    }

    fn program(self, v6: bool, restore: bool) -> &'static str {
        match (self, v6, restore) {
            (Self::Nft, false, false) => "iptables-nft",
            (Self::Nft, true, false) => "ip6tables-nft",
            (Self::Nft, false, true) => "iptables-nft-restore",
            (Self::Nft, true, true) => "ip6tables-nft-restore",
            (Self::Legacy, false, false) => "iptables-legacy",
            (Self::Legacy, true, false) => "ip6tables-legacy",
            (Self::Legacy, false, true) => "iptables-legacy-restore",
            (Self::Legacy, true, true) => "ip6tables-legacy-restore",
        }
    }

    /// Writes tables: our chains anew, and the jumps that are missing.
    pub(crate) fn restore(self, tables: &[XtablesRules], present: &[XtablesRules]) -> io::Result<()> {
        for v6 in [false, true] {
            let jumps = |t: &XtablesRules| {
                let same = |p: &&XtablesRules| p.v6 == t.v6 && p.table == t.table;
                present.iter().find(same).map(|p| p.jumps.clone()).unwrap_or_default()
            };
            let input: String = tables.iter().filter(|t| t.v6 == v6).map(|t| t.restore_input(&jumps(t))).collect();
            if !input.is_empty() {
                run_restore(path_of(self.program(v6, true))?, &input)?;
            }
        }
        Ok(())
    }

    /// What of the chains called by a prefix is in the tables; `chains` are those of nf_tables.
    pub(crate) fn list(self, prefix: &str, chains: &[ChainName]) -> io::Result<Vec<XtablesRules>> {
        let mut out = Vec::new();
        for v6 in [false, true] {
            let tables = self.existing_tables(v6, prefix, chains);
            if tables.is_empty() {
                continue;
            }
            let program = self.handle(v6)?;
            for table in tables {
                let lines = program.list_table(table).map_err(|e| io::Error::other(e.to_string()))?;
                let found = XtablesRules::from_listing(v6, table, prefix, &lines);
                if !found.is_empty() {
                    out.push(found);
                }
            }
        }
        Ok(out)
    }

    /// Takes out the chains called by a prefix, and the jumps to them; goes on after an error and reports the last.
    pub(crate) fn remove(self, prefix: &str, chains: &[ChainName]) -> io::Result<bool> {
        let present = self.list(prefix, chains)?;
        let mut result = Ok(!present.is_empty());
        for table in &present {
            let program = self.handle(table.v6)?;
            let mut note = |done: Result<(), Box<dyn std::error::Error>>| {
                if let Err(e) = done {
                    result = Err(io::Error::other(e.to_string()));
                }
            };
            for jump in &table.jumps {
                if let Some((chain, rule)) = jump.trim_start_matches("-A ").split_once(' ') {
                    note(program.delete(&table.table, chain, rule));
                }
            }
            let chains = program.list_chains(&table.table).unwrap_or_default();
            let ours = || chains.iter().filter(|c| c.starts_with(prefix));
            ours().for_each(|chain| note(program.flush_chain(&table.table, chain)));
            ours().for_each(|chain| note(program.delete_chain(&table.table, chain)));
        }
        result
    }

    /// The tables that exist and may have such chains: asking for another would make it, and load modules.
    fn existing_tables(self, v6: bool, prefix: &str, chains: &[ChainName]) -> Vec<&'static str> {
        let there: Vec<String> = match self {
            Self::Legacy => {
                let names = if v6 { "ip6_tables_names" } else { "ip_tables_names" };
                let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
                names.lines().map(str::to_owned).collect()
            }
            Self::Nft => {
                let family = if v6 { Family::Ipv6 } else { Family::Ipv4 };
                let with_such = chains.iter().filter(|c| c.family == family && c.chain.starts_with(prefix));
                with_such.map(|c| c.table.clone()).collect()
            }
        };
        TABLES.into_iter().filter(|t| there.iter().any(|name| name == t)).collect()
    }

    fn handle(self, v6: bool) -> io::Result<IPTables> {
        // Every version since 1.4.20 (2013) can check and wait.
        Ok(IPTables { cmd: path_of(self.program(v6, false))?, has_check: true, has_wait: true, is_numeric: false })
    }
}

/// Where a program is: a CNI plugin may be started without a search path.
fn path_of(program: &'static str) -> io::Result<&'static str> {
    static FOUND: LazyLock<Mutex<HashMap<&'static str, &'static str>>> = LazyLock::new(Mutex::default);
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = found.get(program) {
        return Ok(path);
    }
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
    let path = folders.iter().map(|f| format!("{f}/{program}")).find(|p| Path::new(p).exists());
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{program} is not installed"));
    let path: &'static str = Box::leak(path.ok_or_else(missing)?.into_boxed_str()); // one for each program, for good
    found.insert(program, path);
    Ok(path)
}

fn run_restore(program: &str, input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(["--noflush", "--wait", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.trim().replace('\n', "; "))))
}
