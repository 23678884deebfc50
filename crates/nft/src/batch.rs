//! A batch: many changes, applied together or not at all.

use std::net::IpAddr;

use crate::attr::Writer;
use crate::expr::Expr;
use crate::object::{Chain, ChainName, Family, Jump, Rule, Set};
use crate::socket::{NLMSG_ERROR, NftError, Socket, messages};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_UNSPEC: u8 = 0;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// An attribute's length has 16 bits, and an IPv6 address takes 28 bytes.
const MOST_ELEMENTS: usize = 2000;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Changes to one table of the inet family, and what of other tables goes with them, to be applied together.
#[derive(Debug)]
pub struct Batch {
    table: String,
    buffer: Vec<u8>,
    /// What each message was about; the index is the sequence number less one.
    what: Vec<String>,
}

impl Batch {
    /// An empty batch for a table.
    pub fn new(table: &str) -> Self {
        let mut batch = Self { table: table.to_owned(), buffer: Vec::new(), what: Vec::new() };
        batch.boundary(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Creates the table; the kernel refuses with EEXIST when it is there already.
    pub fn create_table(&mut self) -> &mut Self {
        let table = self.table.clone();
        self.message(NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, format!("table inet {table}"), |w| {
            w.text(1, &table).be32(2, 0); // NAME, FLAGS
        })
    }

    /// Creates the table, or leaves the one that is there as it is.
    pub fn ensure_table(&mut self) -> &mut Self {
        let table = self.table.clone();
        self.message(NEWTABLE, NLM_F_CREATE, format!("table inet {table}"), |w| {
            w.text(1, &table).be32(2, 0); // NAME, FLAGS
        })
    }

    /// Deletes the table and everything in it; the kernel refuses with ENOENT when it is not there.
    ///
    /// Closing the socket of such a batch waits for the kernel to free the objects (about 10 ms), so this has no place
    /// on the path of a starting pod.
    pub fn delete_table(&mut self) -> &mut Self {
        let table = self.table.clone();
        self.message(DELTABLE, 0, format!("the deletion of table inet {table}"), |w| {
            w.text(1, &table);
        })
    }

    /// Deletes another table and everything in it.
    pub fn delete_other_table(&mut self, family: Family, table: &str) -> &mut Self {
        self.message_to(family, DELTABLE, 0, format!("the deletion of table {table}"), |w| {
            w.text(1, table);
        })
    }

    /// Deletes a rule that jumps.
    pub fn delete_jump(&mut self, jump: &Jump) -> &mut Self {
        let ChainName { family, table, chain } = &jump.from;
        self.message_to(*family, DELRULE, 0, format!("the deletion of the jump from {chain} to {}", jump.to), |w| {
            w.text(1, table).text(2, chain).bytes(3, &jump.handle.to_be_bytes()); // TABLE, CHAIN, HANDLE
        })
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, of: &ChainName) -> &mut Self {
        self.message_to(of.family, DELRULE, 0, format!("the deletion of what is in chain {}", of.chain), |w| {
            w.text(1, &of.table).text(2, &of.chain); // TABLE, CHAIN
        })
    }

    /// Deletes a chain that is empty, and that nothing jumps to.
    pub fn delete_chain(&mut self, of: &ChainName) -> &mut Self {
        self.message_to(of.family, DELCHAIN, 0, format!("the deletion of chain {}", of.chain), |w| {
            w.text(1, &of.table).text(3, &of.chain); // TABLE, NAME
        })
    }

    /// Adds a base chain.
    pub fn chain(&mut self, chain: &Chain) -> &mut Self {
        let table = self.table.clone();
        self.message(NEWCHAIN, NLM_F_CREATE, format!("chain {}", chain.name), |w| {
            w.text(1, &table).text(3, &chain.name); // TABLE, NAME
            w.nested(4, |w| {
                w.be32(1, chain.hook.number()); // HOOKNUM
                w.bytes(2, &chain.priority.to_be_bytes()); // PRIORITY
            });
            w.be32(5, 1).text(7, chain.kind.name()); // POLICY accept, TYPE
        })
    }

    /// Appends a rule.
    pub fn rule(&mut self, rule: &Rule) -> &mut Self {
        let table = self.table.clone();
        let number = self.what.len();
        self.message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, format!("rule {number} of chain {}", rule.chain), |w| {
            w.text(1, &table).text(2, &rule.chain); // TABLE, CHAIN
            w.nested(4, |w| Expr::write_all(&rule.exprs, w)); // EXPRESSIONS
        })
    }

    /// Adds a set with its elements.
    pub fn set(&mut self, set: &Set) -> &mut Self {
        let table = self.table.clone();
        let (kind, len) = set.key.type_and_len();
        let id = u32::try_from(self.what.len()).unwrap_or(0);
        self.message(NEWSET, NLM_F_CREATE, format!("set {}", set.name), |w| {
            w.text(1, &table).text(2, &set.name).be32(3, 0); // TABLE, NAME, FLAGS
            w.be32(4, kind).be32(5, len).be32(10, id); // KEY_TYPE, KEY_LEN, ID
        });
        self.add_elements(&set.name, &set.elements)
    }

    /// Adds addresses to a set; those that are in it already are fine.
    pub fn add_elements(&mut self, set: &str, addresses: &[IpAddr]) -> &mut Self {
        self.elements(NEWSETELEM, NLM_F_CREATE, set, addresses)
    }

    /// Deletes addresses from a set; the kernel refuses with ENOENT when one is not in it.
    pub fn delete_elements(&mut self, set: &str, addresses: &[IpAddr]) -> &mut Self {
        self.elements(DELSETELEM, 0, set, addresses)
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, addresses: &[IpAddr]) -> &mut Self {
        let table = self.table.clone();
        for some in addresses.chunks(MOST_ELEMENTS) {
            self.message(kind, flags, format!("the elements of set {set}"), |w| {
                w.text(1, &table).text(2, set); // TABLE, SET
                w.nested(3, |w| {
                    for address in some {
                        w.nested(1, |w| {
                            w.nested(1, |w| {
                                match address {
                                    IpAddr::V4(a) => w.bytes(1, &a.octets()),
                                    IpAddr::V6(a) => w.bytes(1, &a.octets()),
                                };
                            });
                        });
                    }
                });
            });
        }
        self
    }

    /// Applies the batch.
    ///
    /// # Errors
    /// [`NftError::Refused`] names the first object that the kernel did not take; then nothing was applied.
    pub fn commit(mut self, socket: &Socket) -> Result<(), NftError> {
        self.boundary(NFNL_MSG_BATCH_END);
        socket.send(&self.buffer)?;
        // An acknowledgement for each message, or errors; the kernel answers in order and the last one ends it.
        let last = u32::try_from(self.what.len() - 1).unwrap_or(u32::MAX);
        loop {
            let received = socket.receive()?;
            for m in messages(&received) {
                if m.kind != NLMSG_ERROR {
                    continue;
                }
                let errno = m.errno();
                if errno != 0 {
                    let index = m.seq.saturating_sub(1) as usize;
                    let what = self.what.get(index).cloned().unwrap_or_else(|| "the batch".to_owned());
                    return Err(NftError::Refused { what, source: std::io::Error::from_raw_os_error(errno) });
                }
                if m.seq >= last {
                    return Ok(());
                }
            }
        }
    }

    fn boundary(&mut self, kind: u16) {
        let what = "the batch".to_owned();
        self.push(kind, NLM_F_REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, what, &[]);
    }

    fn message(&mut self, kind: u16, flags: u16, what: String, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        self.message_to(Family::Inet, kind, flags, what, fill)
    }

    fn message_to(
        &mut self,
        family: Family,
        kind: u16,
        flags: u16,
        what: String,
        fill: impl FnOnce(&mut Writer),
    ) -> &mut Self {
        let mut w = Writer::default();
        fill(&mut w);
        let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
        self.push(kind, NLM_F_REQUEST | NLM_F_ACK | flags, family.number(), 0, what, &w.0);
        self
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, what: String, attributes: &[u8]) {
        self.what.push(what);
        let seq = u32::try_from(self.what.len()).unwrap_or(u32::MAX);
        push_message(&mut self.buffer, kind, flags, seq, family, resource, attributes);
    }
}

/// Appends one nfnetlink message: the netlink header, the four bytes of nfgenmsg, the attributes.
pub(crate) fn push_message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    seq: u32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) {
    let len = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&len.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&seq.to_ne_bytes());
    buffer.extend_from_slice(&[0; 4]); // port id: the kernel fills it in
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
    buffer.extend_from_slice(attributes);
}
