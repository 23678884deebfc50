//! Batches: changes that the kernel applies atomically.

use crate::attr::Writer;
use crate::expr::Expr;
use crate::netlink::{Message, set_flag};
use crate::object::{Chain, ChainName, Family, Jump, Rule, Table};
use crate::set::{Element, Set};
use crate::socket::{NftError, Socket};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// NFNL_BATCH_GENID, an attribute of NFNL_MSG_BATCH_BEGIN (linux/netfilter/nfnetlink.h).
const GENID: u16 = 1;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
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

/// Maximum set elements per message: an attribute length has 16 bits, and an IPv6 connection takes
/// 36 bytes.
const MAX_ELEMENTS: usize = 1500;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Atomic changes to one table of the inet family, and deletions from other tables that belong to
/// the same transaction.
#[derive(Debug)]
pub struct Batch {
    table: String,
    buffer: Vec<u8>,
    /// A description of each message, for errors; the index is the sequence number minus one.
    descriptions: Vec<String>,
    /// Offset of the last message.
    last: usize,
    deletes: bool,
}

impl Batch {
    /// Creates an empty batch for a table.
    pub fn new(table: &str) -> Self {
        let mut batch = Self {
            table: table.to_owned(),
            buffer: Vec::new(),
            descriptions: Vec::new(),
            last: 0,
            deletes: false,
        };
        batch.boundary(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Creates the batch's table with the contents of `table`; fails with EEXIST if it exists.
    pub fn create_table(&mut self, table: &Table) -> &mut Self {
        self.table(NLM_F_CREATE | NLM_F_EXCL);
        for set in &table.sets {
            self.set(set);
        }
        for chain in &table.chains {
            self.chain(chain);
        }
        for rule in &table.rules {
            self.rule(rule);
        }
        self
    }

    /// Creates the table if it does not exist.
    pub fn ensure_table(&mut self) -> &mut Self {
        self.table(NLM_F_CREATE)
    }

    fn table(&mut self, flags: u16) -> &mut Self {
        let what = format!("table inet {}", self.table);
        let attributes = self.in_table().be32(2, 0); // FLAGS
        self.push(Family::Inet, NEWTABLE, flags, what, attributes)
    }

    /// Deletes the table with its contents; fails with ENOENT if it does not exist.
    ///
    /// Closing the socket of such a batch waits about 10 ms for the kernel to free the objects, so
    /// avoid this while a pod starts.
    pub fn delete_table(&mut self) -> &mut Self {
        let what = format!("the deletion of table inet {}", self.table);
        self.push(Family::Inet, DELTABLE, 0, what, self.in_table())
    }

    /// Deletes another table with its contents.
    pub fn delete_other_table(&mut self, family: Family, table: &str) -> &mut Self {
        let what = format!("the deletion of table {table}");
        self.push(family, DELTABLE, 0, what, in_table(table))
    }

    /// Deletes a rule that jumps to another chain.
    pub fn delete_jump(&mut self, jump: &Jump) -> &mut Self {
        let of = &jump.from;
        let what = format!("the deletion of the jump from {} to {}", of.chain, jump.to);
        let handle = jump.handle.to_be_bytes();
        let attributes = in_table(&of.table).text(2, &of.chain).bytes(3, &handle); // CHAIN, HANDLE
        self.push(of.family, DELRULE, 0, what, attributes)
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, of: &ChainName) -> &mut Self {
        let what = format!("the deletion of the rules of chain {}", of.chain);
        let attributes = in_table(&of.table).text(2, &of.chain); // CHAIN
        self.push(of.family, DELRULE, 0, what, attributes)
    }

    /// Deletes an empty chain that no rule jumps to.
    pub fn delete_chain(&mut self, of: &ChainName) -> &mut Self {
        let what = format!("the deletion of chain {}", of.chain);
        let attributes = in_table(&of.table).text(3, &of.chain); // NAME
        self.push(of.family, DELCHAIN, 0, what, attributes)
    }

    /// Adds a base chain.
    fn chain(&mut self, chain: &Chain) -> &mut Self {
        let hook = Writer::default().be32(1, chain.hook.number()); // HOOKNUM
        let hook = hook.bytes(2, &chain.priority.to_be_bytes()); // PRIORITY
        let attributes = self.in_table().text(3, &chain.name).nested(4, hook); // NAME, HOOK
        let attributes = attributes.be32(5, 1).text(7, chain.kind.name()); // POLICY accept, TYPE
        let what = format!("chain {}", chain.name);
        self.push(Family::Inet, NEWCHAIN, NLM_F_CREATE, what, attributes)
    }

    /// Appends a rule.
    fn rule(&mut self, rule: &Rule) -> &mut Self {
        let what = format!("rule {} of chain {}", self.descriptions.len(), rule.chain);
        let attributes = self.in_table().text(2, &rule.chain); // CHAIN
        let attributes = attributes.nested(4, Expr::encode_all(&rule.exprs)); // EXPRESSIONS
        self.push(
            Family::Inet,
            NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            what,
            attributes,
        )
    }

    /// Adds a set with its elements.
    fn set(&mut self, set: &Set) -> &mut Self {
        let (kind, len) = set.key.type_and_len();
        let id = u32::try_from(self.descriptions.len()).unwrap_or(0);
        let attributes = self.in_table().text(2, &set.name).be32(3, 0); // NAME, FLAGS
        // KEY_TYPE, KEY_LEN, ID
        let mut attributes = attributes.be32(4, kind).be32(5, len).be32(10, id);
        if let Some(size) = set.fixed_size() {
            attributes = attributes.nested(9, Writer::default().be32(1, size)); // DESC, SIZE
        }
        let what = format!("set {}", set.name);
        self.push(Family::Inet, NEWSET, NLM_F_CREATE, what, attributes);
        self.add_elements(&set.name, &set.elements)
    }

    /// Adds elements to a set; existing ones are ignored.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(NEWSETELEM, NLM_F_CREATE, set, elements)
    }

    /// Deletes elements from a set; fails with ENOENT if one is missing.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(DELSETELEM, 0, set, elements)
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) -> &mut Self {
        for chunk in elements.chunks(MAX_ELEMENTS) {
            let elements = chunk.iter().fold(Writer::default(), |list, element| {
                list.nested(1, Writer::default().data(1, &element.key())) // LIST_ELEM, KEY
            });
            let attributes = self.in_table().text(2, set).nested(3, elements); // SET, ELEMENTS
            let what = format!("the elements of set {set}");
            self.push(Family::Inet, kind, flags, what, attributes);
        }
        self
    }

    fn in_table(&self) -> Writer {
        in_table(&self.table)
    }

    /// Restricts the batch to a [`generation`](crate::generation) of the namespace's ruleset: if
    /// any table was changed since, the kernel rejects the batch with ERESTART.
    pub fn for_generation(&mut self, generation: u32) -> &mut Self {
        let begin = boundary(
            NFNL_MSG_BATCH_BEGIN,
            1,
            &Writer::default().be32(GENID, generation),
        );
        let unrestricted = begin.len() - 8; // the length of the attribute
        self.buffer.splice(..unrestricted, begin);
        if self.descriptions.len() > 1 {
            self.last += 8;
        }
        self
    }

    /// Applies the batch. A batch without messages changes nothing.
    ///
    /// # Errors
    /// [`NftError::Refused`] names the first object that the kernel rejected; nothing was applied.
    /// The socket must not be used again, because it may hold further answers.
    pub fn commit(mut self, socket: &Socket) -> Result<(), NftError> {
        let last = self.descriptions.len();
        if last == 1 {
            return Ok(());
        }
        self.finish();
        socket.0.send(&self.buffer)?;
        let outcome_of = |m: &Message<'_>| match m.outcome()? {
            Err(source) => {
                let index = m.seq.saturating_sub(1) as usize;
                let object = self.descriptions.get(index).cloned();
                Some(Err(NftError::Refused {
                    object: object.unwrap_or_else(|| "the batch".to_owned()),
                    source,
                }))
            }
            Ok(()) => (m.seq as usize >= last).then_some(Ok(())),
        };
        loop {
            let outcome = socket
                .0
                .receive(|found| found.iter().find_map(outcome_of))?;
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Whether the batch deletes anything.
    pub fn deletes(&self) -> bool {
        self.deletes
    }

    /// Asks for an acknowledgement of the last message, and ends the batch.
    ///
    /// The kernel reports errors of all messages. An acknowledgement for each would overflow the
    /// receive buffer, and before Linux 6.10 the kernel does not acknowledge the end of a batch.
    fn finish(&mut self) {
        set_flag(&mut self.buffer[self.last..], NLM_F_ACK);
        self.boundary(NFNL_MSG_BATCH_END);
    }

    fn boundary(&mut self, kind: u16) {
        let seq = self.describe("the batch".to_owned());
        self.buffer.extend(boundary(kind, seq, &Writer::default()));
    }

    fn push(
        &mut self,
        family: Family,
        kind: u16,
        flags: u16,
        description: String,
        attributes: Writer,
    ) -> &mut Self {
        self.deletes |= [DELTABLE, DELCHAIN, DELRULE, DELSETELEM].contains(&kind);
        let (seq, flags) = (self.describe(description), NLM_F_REQUEST | flags);
        self.last = self.buffer.len();
        let header = [family.number(), 0, 0, 0];
        let message = message(nf_tables(kind), flags, seq, header, &attributes);
        self.buffer.extend(message);
        self
    }

    /// Stores the description of the next message; returns its sequence number.
    fn describe(&mut self, description: String) -> u32 {
        self.descriptions.push(description);
        u32::try_from(self.descriptions.len()).unwrap_or(u32::MAX)
    }
}

/// The message that begins or ends a batch; its resource is the subsystem.
fn boundary(kind: u16, seq: u32, attributes: &Writer) -> Vec<u8> {
    let header = [NFPROTO_UNSPEC, 0, 0, NFNL_SUBSYS_NFTABLES];
    message(kind, NLM_F_REQUEST, seq, header, attributes)
}

/// The attribute that names the table of an object.
fn in_table(table: &str) -> Writer {
    Writer::default().text(1, table)
}

/// The type of an nf_tables message among those of all nfnetlink subsystems.
pub(crate) fn nf_tables(kind: u16) -> u16 {
    u16::from(NFNL_SUBSYS_NFTABLES) << 8 | kind
}

/// Builds an nfnetlink message: netlink header, nfgenmsg (family, version, resource), attributes.
pub(crate) fn message(
    kind: u16,
    flags: u16,
    seq: u32,
    nfgenmsg: [u8; 4],
    attributes: &Writer,
) -> Vec<u8> {
    let len = u32::try_from(20 + attributes.0.len()).unwrap_or(u32::MAX);
    let port_id = [0; 4]; // the kernel fills it in
    let (len, seq) = (len.to_ne_bytes(), seq.to_ne_bytes());
    let kind_and_flags = [kind.to_ne_bytes(), flags.to_ne_bytes()].concat();
    [
        &len,
        &kind_and_flags[..],
        &seq,
        &port_id,
        &nfgenmsg,
        &attributes.0,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    /// Kind and acknowledgement flag of each message.
    fn messages_of(mut batch: Batch) -> Vec<(u16, bool)> {
        batch.finish();
        let found = messages(&batch.buffer);
        let acknowledged = |bytes: &[u8]| u16::from(bytes[6]) & NLM_F_ACK != 0;
        let found = found.iter().map(|m| (m.kind & 0xff, acknowledged(m.bytes)));
        found.collect()
    }

    #[test]
    fn only_the_last_message_of_a_batch_is_acknowledged() {
        let mut batch = Batch::new("t");
        batch.ensure_table().delete_table();
        let expected = [
            (NFNL_MSG_BATCH_BEGIN, false),
            (NEWTABLE, false),
            (DELTABLE, true),
            (NFNL_MSG_BATCH_END, false),
        ];
        assert_eq!(messages_of(batch), expected);
        let mut batch = Batch::new("t");
        batch.ensure_table().delete_table().for_generation(7);
        assert_eq!(messages_of(batch), expected, "restricted at the end");
        let mut batch = Batch::new("t");
        batch.for_generation(7).ensure_table().delete_table();
        assert!(batch.deletes());
        assert_eq!(messages_of(batch), expected, "restricted at the beginning");
        let mut batch = Batch::new("t");
        batch.create_table(&Table::new("t"));
        assert!(!batch.deletes());
    }

    #[test]
    fn ten_thousand_connections_fit_into_messages() {
        let family = crate::IpFamily::V6;
        let element = |port| Element::Connection {
            peer: [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
            source_port: port,
            destination_port: 443,
        };
        let set = Set {
            name: "open6".into(),
            key: crate::SetKey::Connection(family),
            elements: (0..10_000).map(element).collect(),
        };
        let mut table = Table::new("t");
        table.sets.push(set.clone());
        let mut batch = Batch::new("t");
        batch.create_table(&table);
        let found = messages(&batch.buffer);
        let mut read = Table::new("t");
        for m in &found {
            let kind = match m.kind & 0xff {
                NEWSET => crate::ObjectKind::Set,
                NEWSETELEM => crate::ObjectKind::Elements,
                _ => continue,
            };
            read.add_message(kind, &m.body[4..]);
        }
        assert_eq!(read.sets, [set]);
    }
}
