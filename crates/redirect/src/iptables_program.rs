//! The iptables backend of the `nat` capture: the only module that runs a host program.

#![expect(
    clippy::disallowed_types,
    reason = "only the iptables backend runs host programs"
)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use iptables::IPTables;
use nft::netlink::{MAX_OBJECTS, TooMany};
use nft::{ChainName, Family, IpFamily, Socket};

use crate::legacy_tables;
use crate::xtables::{TABLES, XtablesRules, program};

/// Maximum size in bytes of what a program lists, and the time that it may take.
const MAX_LISTING: u64 = 16 << 20;
const LISTING_TIMEOUT: Duration = Duration::from_secs(5);

/// The tables of a namespace that exist, as far as iptables can have rules in them. Read once, and
/// used for all searches.
#[derive(Debug, Default)]
pub(crate) struct ExistingTables {
    /// All chains of nf_tables.
    chains: Vec<ChainName>,
    /// The tables of iptables-legacy, of each family.
    legacy: [Vec<String>; 2],
}

impl ExistingTables {
    /// Reads those of iptables-legacy in the calling thread's network namespace, given the chains
    /// of nf_tables.
    pub(crate) fn read(chains: Vec<ChainName>) -> Self {
        let legacy = IpFamily::ALL.map(legacy_tables::names);
        Self { chains, legacy }
    }

    pub(crate) fn chains(&self) -> &[ChainName] {
        &self.chains
    }

    /// The tables of iptables-legacy of a family.
    pub(crate) fn legacy(&self, family: IpFamily) -> &[String] {
        let families = IpFamily::ALL.iter().zip(&self.legacy);
        let mut of_family = families.filter(|(of, _)| **of == family);
        of_family.next().map_or(&[], |(_, tables)| tables)
    }

    /// Lists those of a variant that may have chains with the prefix. Listing any other table would
    /// create it and load kernel modules.
    fn of(&self, variant: Variant, family: IpFamily, prefix: &str) -> Vec<&'static str> {
        let existing: Vec<&str> = match variant {
            Variant::Legacy => self.legacy(family).iter().map(String::as_str).collect(),
            Variant::Nft => {
                let chains = self
                    .chains
                    .iter()
                    .filter(|c| c.family == Family::Ip(family));
                let with_prefix = chains.filter(|c| c.chain.starts_with(prefix));
                with_prefix.map(|c| c.table.as_str()).collect()
            }
        };
        TABLES
            .into_iter()
            .filter(|t| existing.contains(t))
            .collect()
    }
}

/// An iptables variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(crate) const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    fn program(self, family: IpFamily) -> String {
        let variant = match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        };
        format!("{}-{variant}", program(family))
    }

    /// Writes tables: replaces Underpass's chains and adds missing jumps.
    pub(crate) fn restore(
        self,
        tables: &[XtablesRules],
        present: &[XtablesRules],
    ) -> io::Result<()> {
        for family in IpFamily::ALL {
            let jumps = |t: &XtablesRules| {
                let present = present.iter().find(|p| p.same_table(t));
                present.map(|p| p.jumps.clone()).unwrap_or_default()
            };
            let tables = tables.iter().filter(|t| t.family == family);
            let input: String = tables.map(|t| t.restore_input(&jumps(t))).collect();
            if !input.is_empty() {
                let program = format!("{}-restore", self.program(family));
                run_restore(path_of(program)?, &input)?;
            }
        }
        Ok(())
    }

    /// Lists the chains with a prefix and the jumps to them.
    pub(crate) fn list(
        self,
        prefix: &str,
        existing: &ExistingTables,
    ) -> io::Result<Vec<XtablesRules>> {
        let mut out = Vec::new();
        for family in IpFamily::ALL {
            let tables = existing.of(self, family, prefix);
            if tables.is_empty() {
                continue;
            }
            let program = self.handle(family)?;
            for table in tables {
                if self == Self::Nft {
                    check_size(family, table)?;
                }
                let lines = listing(program.cmd, table)?;
                let found = XtablesRules::from_listing(family, table, prefix, &lines);
                if !found.is_empty() {
                    out.push(found);
                }
            }
        }
        Ok(out)
    }

    /// Checks that the programs are installed, without which rules cannot be removed.
    pub(crate) fn require(self) -> io::Result<()> {
        IpFamily::ALL
            .into_iter()
            .try_for_each(|family| path_of(self.program(family)).map(drop))
    }

    /// Removes the chains with a prefix and the jumps to them; returns whether there were any.
    /// Continues after errors and returns the last one. Chains that the programs cannot list, most
    /// likely because they are not installed, were not written with them either.
    pub(crate) fn remove(self, prefix: &str, existing: &ExistingTables) -> io::Result<bool> {
        let present = self.list(prefix, existing).unwrap_or_default();
        let mut result = Ok(!present.is_empty());
        for table in &present {
            let program = self.handle(table.family)?;
            let mut record = |removed: Result<(), Box<dyn std::error::Error>>| {
                if let Err(e) = removed {
                    result = Err(io::Error::other(e.to_string()));
                }
            };
            for jump in &table.jumps {
                if let Some((chain, rule)) = jump.trim_start_matches("-A ").split_once(' ') {
                    record(program.delete(&table.table, chain, rule));
                }
            }
            let lines = listing(program.cmd, &table.table).unwrap_or_default();
            let chains = lines.iter().filter_map(|l| l.strip_prefix("-N "));
            let prefixed = || chains.clone().filter(|c| c.starts_with(prefix));
            prefixed().for_each(|chain| record(program.flush_chain(&table.table, chain)));
            prefixed().for_each(|chain| record(program.delete_chain(&table.table, chain)));
        }
        result
    }

    fn handle(self, family: IpFamily) -> io::Result<IPTables> {
        // All versions since 1.4.20 (2013) support --check and --wait.
        Ok(IPTables {
            cmd: path_of(self.program(family))?,
            has_check: true,
            has_wait: true,
            is_numeric: false,
        })
    }
}

/// Finds a program in well-known folders: a CNI plugin may be started without PATH.
fn path_of(program: String) -> io::Result<&'static str> {
    static FOUND: Mutex<BTreeMap<String, &'static str>> = Mutex::new(BTreeMap::new());
    const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin";
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = found.get(&program) {
        return Ok(path);
    }
    let mut paths = PATH.split(':').map(|f| format!("{f}/{program}"));
    let path = paths.find(|p| Path::new(p).exists()).ok_or_else(|| {
        let reason = format!("{program} is not installed");
        io::Error::new(io::ErrorKind::NotFound, reason)
    })?;
    let path: &'static str = path.leak(); // once per program
    found.insert(program, path);
    Ok(path)
}

/// Fails if a table of nf_tables has more rules than are read, before a program reads them all.
fn check_size(family: IpFamily, table: &str) -> io::Result<()> {
    let jumps = Socket::open().and_then(|s| nft::jumps(&s, Family::Ip(family), table));
    match jumps {
        Err(e) if e.is_too_many() => Err(TooMany::of(MAX_OBJECTS)),
        _ => Ok(()),
    }
}

/// Lists the rules of a table, in the form of `iptables -S`.
///
/// # Errors
/// [`TooMany`] if the program prints too much or does not end in time; it is stopped then.
fn listing(program: &str, table: &str) -> io::Result<Vec<String>> {
    let mut child = Command::new(program)
        .args(["--wait", "-t", table, "-S"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take();
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.map(|s| s.take(MAX_LISTING).read_to_end(&mut text));
        let _ = sender.send(read.transpose().map(|_| text));
    });
    let text = match received.recv_timeout(LISTING_TIMEOUT) {
        Ok(Ok(text)) if (text.len() as u64) < MAX_LISTING => Ok(text),
        Ok(Err(e)) => Err(e),
        _ => Err(TooMany::of(MAX_OBJECTS)),
    };
    if text.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output()?;
    let text = text?;
    succeeded(program, &output)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.len() > MAX_OBJECTS {
        return Err(TooMany::of(MAX_OBJECTS));
    }
    Ok(lines)
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
    succeeded(program, &child.wait_with_output()?)
}

fn succeeded(program: &str, output: &Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = stderr.trim().replace('\n', "; ");
    Err(io::Error::other(format!("{program}: {reason}")))
}
