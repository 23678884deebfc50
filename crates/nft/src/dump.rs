//! Dumps: reading tables, chains and rules from the kernel.

use crate::attr::{Reader, Writer};
use crate::batch::{NLM_F_REQUEST, message, nf_tables};
use crate::expr::{Expr, Verdict};
use crate::netlink::{Budget, Message};
use crate::object::{Chain, ChainKind, ChainName, Family, Hook, Jump, Rule, Table};
use crate::set::{Element, Set, SetKey};
use crate::socket::{NftError, Socket};

const GETTABLE: u16 = 1;
pub(crate) const GETCHAIN: u16 = 4;
pub(crate) const GETRULE: u16 = 7;
const GETSET: u16 = 10;
const GETSETELEM: u16 = 13;
const GETGEN: u16 = 16;

/// Selects all families in a dump request.
pub(crate) const UNSPECIFIED: u8 = 0;

const NLM_F_DUMP: u16 = 0x300;

/// The policy accept (NF_ACCEPT), which the kernel assumes if there is none.
const ACCEPT: u32 = 1;
/// NFT_CHAIN_HW_OFFLOAD
const HW_OFFLOAD: u32 = 2;

/// The kind of object that a dump message describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// The table itself.
    Table,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set, without its elements.
    Set,
    /// Elements of a set that an earlier message described.
    Elements,
}

impl Table {
    /// Adds the object that a dump message describes, from the attributes after the nfgenmsg
    /// header. Ignores objects of other tables; [`Table::unknown`] lists what Underpass never
    /// writes.
    pub fn add_message(&mut self, kind: ObjectKind, attributes: &[u8]) {
        let r = Reader(attributes);
        if r.text(1).as_ref() == Some(&self.name) {
            let (added, what) = match kind {
                ObjectKind::Table => (self.add_flags(r), "table".to_owned()),
                ObjectKind::Chain => (self.add_chain(r), named("chain", r.text(3))),
                ObjectKind::Rule => (self.add_rule(r), named("rule of chain", r.text(2))),
                ObjectKind::Set => (self.add_set(r), named("set", r.text(2))),
                ObjectKind::Elements => (self.add_elements(r), named("element of set", r.text(2))),
            };
            if added.is_none() {
                self.unknown.push(format!("{what} of an unknown form"));
            }
        }
    }

    fn add_flags(&mut self, r: Reader<'_>) -> Option<()> {
        let names = [(1, "dormant"), (2, "owner"), (4, "persist")];
        let flags = r.be32(2).unwrap_or(0);
        let set = names.iter().filter(|(bit, _)| flags & bit != 0);
        self.unknown
            .extend(set.map(|(_, name)| format!("flag {name}")));
        (flags & !7 == 0).then_some(())
    }

    fn add_chain(&mut self, r: Reader<'_>) -> Option<()> {
        let name = r.text(3)?;
        let Some(hook) = r.nested(4) else {
            self.unknown.push(format!("chain {name} without a hook"));
            return Some(());
        };
        let kind = ChainKind::from_name(&r.text(7)?)?;
        if r.be32(5).is_some_and(|policy| policy != ACCEPT) {
            self.unknown.push(format!("policy drop of chain {name}"));
        }
        if r.be32(10).is_some_and(|flags| flags & HW_OFFLOAD != 0) {
            self.unknown.push(format!("flag offload of chain {name}"));
        }
        self.chains.push(Chain {
            name,
            kind,
            hook: Hook::from_number(hook.be32(1).unwrap_or(u32::MAX)),
            priority: hook.be32(2).unwrap_or(0).cast_signed(),
        });
        Some(())
    }

    fn add_rule(&mut self, r: Reader<'_>) -> Option<()> {
        self.rules.push(Rule {
            chain: r.text(2)?,
            exprs: Expr::decode_all(r.nested(4)?),
        });
        Some(())
    }

    fn add_set(&mut self, r: Reader<'_>) -> Option<()> {
        let name = r.text(2)?;
        // Intervals, maps, timeouts and elements added by packets.
        if r.be32(3).is_some_and(|flags| flags != 0) {
            self.unknown.push(format!("flags of set {name}"));
        }
        self.sets.push(Set {
            name,
            key: SetKey::of_len(r.be32(5)?)?,
            elements: Vec::new(),
        });
        Some(())
    }

    fn add_elements(&mut self, r: Reader<'_>) -> Option<()> {
        let name = r.text(2)?;
        let set = self.sets.iter_mut().find(|s| s.name == name)?;
        let key = set.key;
        let decode = |(_, element)| Element::decode(key, Reader(element).data(1)?);
        let elements: Option<Vec<Element>> =
            r.nested(3).unwrap_or(Reader(&[])).map(decode).collect();
        set.elements.extend(elements?);
        set.elements.sort();
        Some(())
    }
}

/// The chains of all tables of a network namespace, as the kernel describes them: read once, and
/// used for all that depends on them.
#[derive(Debug, Clone, Default)]
pub struct Chains(pub(crate) Vec<(u8, Vec<u8>)>);

impl Chains {
    /// Reads the chains.
    ///
    /// # Errors
    /// [`NftError`] if the dump fails.
    pub fn read(socket: &Socket) -> Result<Self, NftError> {
        dump(socket, GETCHAIN, UNSPECIFIED, Writer::default()).map(Self)
    }

    /// Lists the chains of the families inet, ip and ip6.
    pub fn names(&self) -> Vec<ChainName> {
        let name = |(family, m): &(u8, Vec<u8>)| {
            let (family, r) = (Family::from_number(*family)?, Reader(m));
            Some(ChainName {
                family,
                table: r.text(1)?,
                chain: r.text(3)?,
            })
        };
        self.0.iter().filter_map(name).collect()
    }
}

/// Reads a table of the inet family; `None` if it does not exist.
///
/// # Errors
/// [`NftError`] if a dump fails.
pub fn dump_table(socket: &Socket, table: &str) -> Result<Option<Table>, NftError> {
    let chains = dump(socket, GETCHAIN, Family::Inet.number(), Writer::default())?;
    dump_table_with(socket, table, &Chains(chains))
}

/// Like [`dump_table`], given the chains. The other objects of the table have one [`Budget`].
///
/// # Errors
/// [`NftError`] if a dump fails.
pub fn dump_table_with(
    socket: &Socket,
    table: &str,
    chains: &Chains,
) -> Result<Option<Table>, NftError> {
    let (family, mut budget) = (Family::Inet.number(), Budget::default());
    let of_table = || Writer::default().text(1, table);
    let mut out = Table::new(table);
    let found = get_table(socket, table, |attributes| {
        out.add_message(ObjectKind::Table, attributes);
    })?;
    if found.is_none() {
        return Ok(None);
    }
    for (_, chain) in chains.0.iter().filter(|(of, _)| *of == family) {
        out.add_message(ObjectKind::Chain, chain);
    }
    let mut add = |out: &mut Table, objects, kind, attributes| {
        dump_within(&mut budget, socket, kind, family, attributes, |_, m| {
            out.add_message(objects, m);
        })
    };
    add(&mut out, ObjectKind::Rule, GETRULE, of_table())?;
    add(&mut out, ObjectKind::Set, GETSET, of_table())?;
    for name in out.sets.iter().map(|s| s.name.clone()).collect::<Vec<_>>() {
        let of_set = of_table().text(2, &name);
        add(&mut out, ObjectKind::Elements, GETSETELEM, of_set)?;
    }
    Ok(Some(out))
}

/// Whether a table of the inet family exists.
///
/// # Errors
/// [`NftError`] if the kernel does not answer.
pub fn table_exists(socket: &Socket, table: &str) -> Result<bool, NftError> {
    Ok(get_table(socket, table, |_| ())?.is_some())
}

/// Reads a table of the inet family without its contents; `None` if it does not exist.
fn get_table<T>(
    socket: &Socket,
    table: &str,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<Option<T>, NftError> {
    let (kind, family) = (nf_tables(GETTABLE), Family::Inet.number());
    let attributes = Writer::default().text(1, table);
    let request = message(kind, NLM_F_REQUEST, 1, [family, 0, 0, 0], &attributes);
    socket.0.send(&request)?;
    socket.0.receive(|found| match found.first() {
        None => Err(std::io::Error::other("the answer contains no message").into()),
        Some(m) => match m.outcome() {
            None => Ok(Some(read(m.body.get(4..).unwrap_or_default()))),
            Some(Err(e)) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Some(outcome) => Ok(outcome.map(|()| None)?),
        },
    })?
}

/// `KIND NAME`.
fn named(kind: &str, name: Option<String>) -> String {
    format!("{kind} {}", name.unwrap_or_default())
}

/// Lists the rules of a table that jump to another chain.
///
/// # Errors
/// [`NftError`] if the dump fails.
pub fn jumps(socket: &Socket, family: Family, table: &str) -> Result<Vec<Jump>, NftError> {
    let of_table = Writer::default().text(1, table);
    let rules = dump(socket, GETRULE, family.number(), of_table)?;
    let jump = |(_, m): &(u8, Vec<u8>)| {
        let r = Reader(m);
        let from = ChainName {
            family,
            table: r.text(1).filter(|t| t == table)?,
            chain: r.text(2)?,
        };
        let handle = u64::from_be_bytes(r.find(3)?.try_into().ok()?);
        let exprs = Expr::decode_all(r.nested(4)?);
        let to = exprs.into_iter().find_map(|e| match e {
            Expr::Verdict(Verdict::Jump(to)) => Some(to),
            _ => None,
        })?;
        Some(Jump { from, to, handle })
    };
    Ok(rules.iter().filter_map(jump).collect())
}

/// Reads the generation id of the namespace's ruleset; every change by any process increments it.
///
/// # Errors
/// [`NftError`] if the dump fails.
pub fn generation(socket: &Socket) -> Result<u32, NftError> {
    let (kind, attributes) = (nf_tables(GETGEN), Writer::default());
    let request = message(kind, NLM_F_REQUEST, 1, [UNSPECIFIED, 0, 0, 0], &attributes);
    socket.0.send(&request)?;
    let of_message = |m: &Message<'_>| Reader(m.body.get(4..)?).be32(1);
    let id = socket
        .0
        .receive(|found| found.iter().find_map(of_message))?;
    id.ok_or_else(|| NftError::Socket(std::io::Error::other("the answer has no generation id")))
}

/// Sends a dump request and collects the family and the attributes of every answer.
pub(crate) fn dump(
    socket: &Socket,
    kind: u16,
    family: u8,
    attributes: Writer,
) -> Result<Vec<(u8, Vec<u8>)>, NftError> {
    let (mut out, budget) = (Vec::new(), &mut Budget::default());
    dump_within(budget, socket, kind, family, attributes, |family, m| {
        out.push((family, m.to_vec()));
    })?;
    Ok(out)
}

/// Like [`dump`], with a budget; passes the answers to `each`.
fn dump_within(
    budget: &mut Budget,
    socket: &Socket,
    kind: u16,
    family: u8,
    attributes: Writer,
    mut each: impl FnMut(u8, &[u8]),
) -> Result<(), NftError> {
    let objects = match kind {
        GETTABLE => "tables",
        GETCHAIN => "chains",
        GETRULE => "rules",
        GETSET => "sets",
        _ => "set elements",
    };
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = message(nf_tables(kind), flags, 1, [family, 0, 0, 0], &attributes);
    let result = socket.0.request(&request, budget, |m| {
        // nfgenmsg: family, version, resource
        if let Some((nfgenmsg, attributes)) = m.body.split_at_checked(4) {
            each(nfgenmsg[0], attributes);
        }
        Ok(())
    });
    match result {
        Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
            Err(NftError::List { objects, source })
        }
        _ => Ok(()),
    }
}
