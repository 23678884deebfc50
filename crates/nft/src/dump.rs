//! Reading a table back.

use std::net::IpAddr;

use crate::attr::{Reader, Writer};
use crate::batch::{NFNL_SUBSYS_NFTABLES, push_message};
use crate::expr::{Expr, Verdict};
use crate::object::{Chain, ChainKind, ChainName, Family, Hook, Jump, Rule, Set, SetKey};
use crate::socket::{NLMSG_DONE, NLMSG_ERROR, NftError, Socket, messages};

const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSET: u16 = 10;
const GETSETELEM: u16 = 13;
const GETGEN: u16 = 16;

/// Every family, in a dump request.
const UNSPECIFIED: u8 = 0;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;

/// What a table of the inet family holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Base chains, in the kernel's order. Chains without a hook are not ours and are left out.
    pub chains: Vec<Chain>,
    /// Rules, in order within each chain.
    pub rules: Vec<Rule>,
    /// Sets of addresses, each with sorted elements.
    pub sets: Vec<Set>,
}

/// What one message of a dump is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dumped {
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set, without its elements.
    Set,
    /// Elements of a set that has been taken before.
    Elements,
}

impl Table {
    /// Takes what one message of a dump says about the table of this name: its attributes, after the header of nf_tables.
    /// What is about another table, or makes no sense, is left out.
    pub fn take(&mut self, table: &str, what: Dumped, attributes: &[u8]) {
        let r = Reader(attributes);
        if r.text(1).as_deref() == Some(table) {
            let _ = match what {
                Dumped::Chain => self.take_chain(r),
                Dumped::Rule => self.take_rule(r),
                Dumped::Set => self.take_set(r),
                Dumped::Elements => self.take_elements(r),
            };
        }
    }

    fn take_chain(&mut self, r: Reader<'_>) -> Option<()> {
        let (name, hook, kind) = (r.text(3)?, r.nested(4)?, ChainKind::from_name(&r.text(7)?)?);
        self.chains.push(Chain {
            name,
            kind,
            hook: Hook::from_number(hook.be32(1).unwrap_or(u32::MAX)),
            priority: i32::from_be_bytes(hook.be32(2).unwrap_or(0).to_be_bytes()),
        });
        Some(())
    }

    fn take_rule(&mut self, r: Reader<'_>) -> Option<()> {
        self.rules.push(Rule { chain: r.text(2)?, exprs: Expr::read_all(r.nested(4)?) });
        Some(())
    }

    fn take_set(&mut self, r: Reader<'_>) -> Option<()> {
        let key = match r.be32(5)? {
            4 => SetKey::Ipv4,
            16 => SetKey::Ipv6,
            _ => return None,
        };
        self.sets.push(Set { name: r.text(2)?, key, elements: Vec::new() });
        Some(())
    }

    fn take_elements(&mut self, r: Reader<'_>) -> Option<()> {
        let name = r.text(2)?;
        let set = self.sets.iter_mut().find(|s| s.name == name)?;
        for (_, element) in r.nested(3)? {
            let key = Reader(element).nested(1).and_then(|k| k.find(1)).unwrap_or_default();
            if let Ok(v4) = <[u8; 4]>::try_from(key) {
                set.elements.push(IpAddr::from(v4));
            } else if let Ok(v6) = <[u8; 16]>::try_from(key) {
                set.elements.push(IpAddr::from(v6));
            }
        }
        set.elements.sort();
        Some(())
    }
}

/// Reads a table of the inet family; `None` when there is no such table (or nothing in it).
///
/// # Errors
/// [`NftError`] when the kernel does not answer as it should.
pub fn dump_table(socket: &Socket, table: &str) -> Result<Option<Table>, NftError> {
    let of_table = |w: &mut Writer| {
        w.text(1, table);
    };
    let mut out = Table::default();
    for m in dump(socket, GETCHAIN, |_| {})? {
        out.take(table, Dumped::Chain, &m);
    }
    for m in dump(socket, GETRULE, of_table)? {
        out.take(table, Dumped::Rule, &m);
    }
    for m in dump(socket, GETSET, of_table)? {
        out.take(table, Dumped::Set, &m);
    }
    for name in out.sets.iter().map(|s| s.name.clone()).collect::<Vec<_>>() {
        let of_set = |w: &mut Writer| {
            w.text(1, table).text(2, &name);
        };
        for m in dump(socket, GETSETELEM, of_set)? {
            out.take(table, Dumped::Elements, &m);
        }
    }
    Ok((out != Table::default()).then_some(out))
}

/// The chains of every table of the families inet, ip and ip6.
///
/// # Errors
/// [`NftError`] when the kernel does not answer as it should.
pub fn chain_names(socket: &Socket) -> Result<Vec<ChainName>, NftError> {
    let chains = dump_family(socket, GETCHAIN, UNSPECIFIED, |_| {})?;
    let name = |(family, m): &(u8, Vec<u8>)| {
        let (family, r) = (Family::from_number(*family)?, Reader(m));
        Some(ChainName { family, table: r.text(1)?, chain: r.text(3)? })
    };
    Ok(chains.iter().filter_map(name).collect())
}

/// The rules of a table that send packets to another chain.
///
/// # Errors
/// [`NftError`] when the kernel does not answer as it should.
pub fn jumps(socket: &Socket, family: Family, table: &str) -> Result<Vec<Jump>, NftError> {
    let rules = dump_family(socket, GETRULE, family.number(), |w| {
        w.text(1, table);
    })?;
    let jump = |(_, m): &(u8, Vec<u8>)| {
        let r = Reader(m);
        let from = ChainName { family, table: r.text(1).filter(|t| t == table)?, chain: r.text(2)? };
        let handle = u64::from_be_bytes(r.find(3)?.try_into().ok()?);
        let to = Expr::read_all(r.nested(4)?).into_iter().find_map(|e| match e {
            Expr::Verdict(Verdict::Jump(to)) => Some(to),
            _ => None,
        })?;
        Some(Jump { from, to, handle })
    };
    Ok(rules.iter().filter_map(jump).collect())
}

/// The generation id of the namespace's rule set; it moves with every change by anybody.
///
/// # Errors
/// [`NftError`] when the kernel does not answer as it should.
pub fn generation(socket: &Socket) -> Result<u32, NftError> {
    let mut request = Vec::new();
    push_message(&mut request, (NFNL_SUBSYS_NFTABLES << 8) | GETGEN, NLM_F_REQUEST, 1, 0, 0, &[]);
    socket.send(&request)?;
    let received = socket.receive()?;
    let id = messages(&received).iter().find_map(|m| Reader(m.body.get(4..)?).be32(1));
    id.ok_or_else(|| NftError::Socket(std::io::Error::other("no generation id in the answer")))
}

/// Sends a dump request and collects the attribute part of every answer.
fn dump(socket: &Socket, kind: u16, fill: impl FnOnce(&mut Writer)) -> Result<Vec<Vec<u8>>, NftError> {
    Ok(dump_family(socket, kind, Family::Inet.number(), fill)?.into_iter().map(|(_, m)| m).collect())
}

/// The same for one family, or all of them, with the family of each.
fn dump_family(
    socket: &Socket,
    kind: u16,
    family: u8,
    fill: impl FnOnce(&mut Writer),
) -> Result<Vec<(u8, Vec<u8>)>, NftError> {
    let mut w = Writer::default();
    fill(&mut w);
    let mut request = Vec::new();
    let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
    push_message(&mut request, kind, NLM_F_REQUEST | NLM_F_DUMP, 1, family, 0, &w.0);
    socket.send(&request)?;
    let mut out = Vec::new();
    loop {
        let received = socket.receive()?;
        for m in messages(&received) {
            match m.kind {
                NLMSG_DONE => return Ok(out),
                NLMSG_ERROR => match m.errno() {
                    0 | libc::ENOENT => return Ok(out),
                    e => {
                        let source = std::io::Error::from_raw_os_error(e);
                        return Err(NftError::Refused { what: "a dump request".into(), source });
                    }
                },
                // nfgenmsg: family, version, resource.
                _ => out.extend(m.body.split_at_checked(4).map(|(head, attributes)| (head[0], attributes.to_vec()))),
            }
        }
    }
}
