//! Very many objects in a network namespace, created as fast as the kernel accepts them.

use std::ops::Range;

use netns::NetNs;
use nft::netlink::{Budget, NetlinkSocket, Protocol};
use nft::{Batch, ChainName, Family, IpFamily, Socket};
use redirect::TABLE_NAME;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const AF_INET: u8 = 2;

/// A table of its own, for chains.
const TABLE: &str = "crowd";
/// Objects of nf_tables that are sent at once.
const AT_ONCE: u32 = 10_000;
/// Priority above that of all ip rules: the kernel adds a rule fastest before all others.
const PRIORITY: u32 = 500_000;

/// A kind of object that a process in a pod can create without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowd {
    /// Chains in a table of the application.
    Chains,
    /// Rules in Underpass's table.
    Rules,
    /// ip rules.
    IpRules,
    /// Routes of the main table.
    Routes,
    /// Addresses of interfaces.
    Addresses,
}

impl Crowd {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Chains,
        Self::Rules,
        Self::IpRules,
        Self::Routes,
        Self::Addresses,
    ];

    /// Creates the objects of these numbers; creating one twice is an error.
    pub fn create(self, netns: &NetNs, numbers: Range<u32>) {
        netns
            .run(|| match self {
                Self::Chains => {
                    let table = [attribute(1, &text(TABLE)), attribute(2, &[0; 4])].concat();
                    send_batch(&[nf_tables(0, CREATE, AF_INET, &table)]);
                    let chain = |n: u32| {
                        let name = text(&format!("c{n}"));
                        let of = [attribute(1, &text(TABLE)), attribute(3, &name)].concat();
                        nf_tables(3, CREATE, AF_INET, &of)
                    };
                    send_in_batches(numbers, chain);
                }
                Self::Rules => {
                    const INET: u8 = 1;
                    let (table, chain) = (text(TABLE_NAME), text("guard"));
                    let empty = attribute(4 | 0x8000, &[]); // expressions, nested
                    let of = [attribute(1, &table), attribute(2, &chain), empty].concat();
                    send_in_batches(numbers, |_| nf_tables(6, CREATE | APPEND, INET, &of));
                }
                Self::IpRules => send_all(numbers.map(|n| ip_rule(32, CREATE, n))),
                Self::Routes => send_all(numbers.map(|n| route(24, CREATE, n))),
                Self::Addresses => {
                    send_all(links_of(&numbers).map(|link| veth(16, CREATE, link)));
                    send_all(numbers.map(|n| address(20, CREATE, n)));
                }
            })
            .unwrap();
    }

    /// Deletes the objects of these numbers; of chains and rules, all.
    pub fn delete(self, netns: &NetNs, numbers: Range<u32>) {
        let commit = |change: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new(TABLE_NAME);
            change(&mut batch);
            batch.commit(&Socket::open().unwrap()).unwrap();
        };
        // The kernel finds the last ones first.
        let newest = numbers.clone().rev();
        netns
            .run(|| match self {
                Self::Chains => commit(&|batch| {
                    batch.delete_other_table(Family::Ip(IpFamily::V4), TABLE);
                }),
                Self::Rules => commit(&|batch| {
                    batch.flush_chain(&ChainName {
                        family: Family::Inet,
                        table: TABLE_NAME.to_owned(),
                        chain: "guard".to_owned(),
                    });
                }),
                Self::IpRules => send_all(newest.map(|n| ip_rule(33, 0, n))),
                Self::Routes => send_all(newest.map(|n| route(25, 0, n))),
                Self::Addresses => {
                    send_all(links_of(&numbers).map(|link| veth(17, 0, link)));
                }
            })
            .unwrap();
    }
}

/// `PRIORITY lookup main`, each of a lower priority.
fn ip_rule(kind: u16, flags: u16, n: u32) -> Vec<u8> {
    // struct fib_rule_hdr: family, table main, FR_ACT_TO_TBL
    let header = [AF_INET, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
    let priority = attribute(6, &(PRIORITY - n).to_ne_bytes());
    message(kind, flags, &header, &priority)
}

/// `blackhole ADDRESS`
fn route(kind: u16, flags: u16, n: u32) -> Vec<u8> {
    // struct rtmsg: family, /32, table main, static, RTN_BLACKHOLE
    let header = [AF_INET, 32, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0];
    let destination = (0x6440_0000 + n).to_be_bytes(); // 100.64.0.0/10
    message(kind, flags, &header, &attribute(1, &destination))
}

/// `ADDRESS/32`, a thousand for each interface: the kernel compares a new one with all others.
fn address(kind: u16, flags: u16, n: u32) -> Vec<u8> {
    let link = link_of(n).to_ne_bytes();
    // struct ifaddrmsg: family, /32, flags, scope, index
    let header = [&[AF_INET, 32, 0, 0], &link[..]].concat();
    let address = (0xc612_0000 + n).to_be_bytes(); // 198.18.0.0/15
    message(kind, flags, &header, &attribute(2, &address))
}

fn link_of(n: u32) -> u32 {
    1000 + n / 1000
}

/// The interfaces of addresses.
fn links_of(numbers: &Range<u32>) -> Range<u32> {
    match numbers.is_empty() {
        true => 0..0,
        false => link_of(numbers.start)..link_of(numbers.end - 1) + 1,
    }
}

/// A veth pair, one end of which has this index.
fn veth(kind: u16, flags: u16, link: u32) -> Vec<u8> {
    // struct ifinfomsg: family, type, index, flags, change mask
    let header = [&[0; 4], &link.to_ne_bytes()[..], &[0; 8]].concat();
    let info = attribute(18, &attribute(1, &text("veth")));
    message(kind, flags, &header, &info)
}

fn send_all(requests: impl Iterator<Item = Vec<u8>>) {
    let socket = NetlinkSocket::open(Protocol::Route).unwrap();
    let errors = socket.request_all(&requests.collect::<Vec<_>>()).unwrap();
    assert!(
        errors.is_empty(),
        "{} errors: {:?}",
        errors.len(),
        errors[0]
    );
}

fn send_in_batches(numbers: Range<u32>, object: impl Fn(u32) -> Vec<u8>) {
    for first in numbers.clone().step_by(AT_ONCE as usize) {
        let objects = first..numbers.end.min(first + AT_ONCE);
        send_batch(&objects.map(&object).collect::<Vec<_>>());
    }
}

/// Sends messages of nf_tables as one transaction.
fn send_batch(messages: &[Vec<u8>]) {
    let boundary = |kind| message(kind, 0, &[0, 0, 0, 10], &[]);
    let mut batch = [&[boundary(0x10)], messages, &[boundary(0x11)]].concat();
    let last = batch.len() - 2;
    batch[last][6] |= ACK as u8;
    let socket = NetlinkSocket::open(Protocol::Netfilter).unwrap();
    socket
        .request(&batch.concat(), &mut Budget::default(), |_| Ok(()))
        .unwrap();
}

fn nf_tables(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    message(10 << 8 | kind, flags, &[family, 0, 0, 0], attributes)
}

fn message(kind: u16, flags: u16, header: &[u8], attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(16 + header.len() + attributes.len()).unwrap();
    [
        &len.to_ne_bytes(),
        &kind.to_ne_bytes()[..],
        &(flags | REQUEST).to_ne_bytes(),
        &[0; 8], // sequence number and port
        header,
        attributes,
    ]
    .concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap();
    let mut out = [&len.to_ne_bytes(), &kind.to_ne_bytes()[..], value].concat();
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), &[0]].concat()
}
