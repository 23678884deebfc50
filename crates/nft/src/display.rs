//! Tables in the syntax of `nft list ruleset` (nftables 1.0).

use std::fmt::{self, Formatter};
use std::net::IpAddr;

use crate::expr::{Cmp, Expr, Verdict};
use crate::field::Field;
use crate::object::{Chain, ChainKind, Hook, IpFamily, Rule, Table, address};
use crate::set::{Element, Set, SetKey};

impl fmt::Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sets = self.sets.iter().map(ToString::to_string);
        let chains = self.chains.iter().map(|chain| {
            let rules = self.rules.iter().filter(|r| r.chain == chain.name);
            let rules: String = rules.map(|r| format!("\t\t{r}\n")).collect();
            format!("{chain}{rules}\t}}\n")
        });
        let blocks: Vec<String> = sets.chain(chains).collect();
        write!(f, "table inet {} {{\n{}}}\n", self.name, blocks.join("\n"))
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        /// The indentation of elements after the first.
        const INDENT: &str = "\t\t\t     ";
        let (name, key) = (&self.name, self.key);
        let per_line = match key {
            SetKey::Address(IpFamily::V4) => 2,
            _ => 1,
        };
        write!(f, "\tset {name} {{\n\t\ttype {key}\n")?;
        if let Some(size) = self.fixed_size() {
            writeln!(f, "\t\tsize {size}")?;
        }
        for (i, element) in self.elements.iter().enumerate() {
            match i {
                0 => write!(f, "\t\telements = {{ {element}")?,
                _ if i % per_line == 0 => write!(f, ",\n{INDENT}{element}")?,
                _ => write!(f, ", {element}")?,
            }
        }
        f.write_str(if self.elements.is_empty() {
            "\t}\n"
        } else {
            " }\n\t}\n"
        })
    }
}

impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpFamily::V4) => f.write_str("ipv4_addr"),
            Self::Address(IpFamily::V6) => f.write_str("ipv6_addr"),
            Self::Connection(family) => {
                write!(
                    f,
                    "{} . inet_service . inet_service",
                    Self::Address(*family)
                )
            }
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Connection {
                peer,
                source_port,
                destination_port,
            } => write!(f, "{peer} . {source_port} . {destination_port}"),
        }
    }
}

/// Prints the beginning of the chain, without rules.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (name, kind) = (&self.name, self.kind.name());
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
            Hook::Other(n) => &n.to_string(),
        };
        let priority = priority(self);
        writeln!(f, "\tchain {name} {{")?;
        let base = format!("type {kind} hook {hook} priority {priority}; policy accept;");
        writeln!(f, "\t\t{base}")
    }
}

/// The name of the priority, as nft's manual lists them.
fn priority(chain: &Chain) -> String {
    let standard = match (chain.kind, chain.hook) {
        (ChainKind::Nat, Hook::Postrouting) => ("srcnat", 100),
        (ChainKind::Nat, Hook::Prerouting) => ("dstnat", -100),
        (ChainKind::Filter | ChainKind::Route, _) if chain.priority < -200 => ("raw", -300),
        (ChainKind::Filter | ChainKind::Route, _) if chain.priority < -50 => ("mangle", -150),
        (ChainKind::Filter | ChainKind::Route, _) => ("filter", 0),
        _ => return chain.priority.to_string(),
    };
    match (standard.0, chain.priority.saturating_sub(standard.1)) {
        (name, 0) => name.to_owned(),
        (name, n @ 1..=10) => format!("{name} + {n}"),
        (name, n @ -10..=-1) => format!("{name} - {}", -n),
        _ => chain.priority.to_string(),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut statements: Vec<String> = Vec::new();
        let mut register = Register::default();
        for expr in &self.exprs {
            // A match on a header implies the header's protocol, which nft does not print.
            // A concatenation begins after the checks of both of its protocols.
            if let Expr::Load(field) | Expr::LoadInto(_, field) = expr {
                let first = statements.len().saturating_sub(2);
                let implied = (first..statements.len()).find(|i| implies(*field, &statements[*i]));
                implied.map(|i| statements.remove(i));
            }
            statements.extend(register.print(expr));
        }
        f.write_str(&statements.join(" "))
    }
}

/// Whether a match on the field implies the statement.
fn implies(field: Field, statement: &str) -> bool {
    match statement {
        "meta nfproto ipv4" => matches!(field, Field::IP_SADDR | Field::IP_DADDR),
        "meta nfproto ipv6" => matches!(field, Field::IP6_SADDR | Field::IP6_DADDR),
        "meta l4proto tcp" | "meta l4proto udp" => {
            matches!(field, Field::SPORT | Field::DPORT | Field::TCP_FLAGS)
        }
        _ => false,
    }
}

/// How nft prints a value.
#[derive(Clone, Copy, Default, PartialEq)]
enum Format {
    Interface,
    Family,
    Protocol,
    Address,
    /// A number in network byte order.
    #[default]
    Number,
    /// A number in the machine's byte order.
    HostNumber,
    Mark,
    TcpFlags,
    AddressType,
    /// The bits of a conntrack entry's state.
    CtState,
    /// The bits of a conntrack entry's status.
    CtStatus,
}

/// The name of a field, without the protocol of a port, and the format of its values.
fn describe(field: Field) -> Option<(&'static str, Format)> {
    Some(match field {
        Field::MARK => ("meta mark", Format::Mark),
        Field::IIFNAME => ("iifname", Format::Interface),
        Field::OIFNAME => ("oifname", Format::Interface),
        Field::NFPROTO => ("meta nfproto", Format::Family),
        Field::L4PROTO => ("meta l4proto", Format::Protocol),
        Field::SKUID => ("meta skuid", Format::HostNumber),
        Field::SKGID => ("meta skgid", Format::HostNumber),
        Field::CT_STATE => ("ct state", Format::CtState),
        Field::CT_STATUS => ("ct status", Format::CtStatus),
        Field::CT_MARK => ("ct mark", Format::Mark),
        Field::SOCKET_MARK => ("socket mark", Format::Mark),
        Field::SOCKET_TRANSPARENT => ("socket transparent", Format::HostNumber),
        Field::FIB_DADDR_TYPE => ("fib daddr type", Format::AddressType),
        Field::IP_SADDR => ("ip saddr", Format::Address),
        Field::IP_DADDR => ("ip daddr", Format::Address),
        Field::IP6_SADDR => ("ip6 saddr", Format::Address),
        Field::IP6_DADDR => ("ip6 daddr", Format::Address),
        Field::SPORT => ("sport", Format::Number),
        Field::DPORT => ("dport", Format::Number),
        Field::TCP_FLAGS => ("tcp flags", Format::TcpFlags),
        _ => return None,
    })
}

/// What a rule has loaded at some point.
#[derive(Default)]
struct Register {
    /// `ip daddr` etc., or a constant.
    name: String,
    format: Format,
    /// The mask, and the bits to set after masking.
    mask: Option<(Vec<u8>, Vec<u8>)>,
    /// The protocol of ports: `tcp` or `udp`.
    protocol: &'static str,
}

impl Register {
    /// Prints the statement that an expression completes, if it completes one.
    fn print(&mut self, expr: &Expr) -> Option<String> {
        let statement = match expr {
            Expr::Load(field) => {
                (self.name, self.format) = self.field(*field);
                self.mask = None;
                return None;
            }
            Expr::LoadInto(_, field) => {
                let (name, _) = self.field(*field);
                self.name = format!("{} . {name}", self.name);
                return None;
            }
            Expr::Constant(value) => {
                (self.name, self.mask) = (host_number(value).to_string(), None);
                return None;
            }
            Expr::Bitwise { mask, bits } => {
                self.mask = Some((mask.clone(), bits.clone()));
                return None;
            }
            Expr::SetMark => format!("meta mark set {}", self.stored_mark()),
            Expr::SetCtMark => format!("ct mark set {}", self.stored_mark()),
            Expr::SetCtZone => format!("ct zone set {}", self.stored()),
            Expr::Cmp(cmp, value) => self.comparison(*cmp, value),
            Expr::Lookup(set) => format!("{} @{set}", self.name),
            Expr::Tproxy { port } => format!("tproxy to :{port}"),
            Expr::Redirect { port } => format!("redirect to :{port}"),
            Expr::SourceNat(IpAddr::V4(address)) => format!("snat ip to {address}"),
            Expr::SourceNat(IpAddr::V6(address)) => format!("snat ip6 to {address}"),
            Expr::RejectTcpReset => "reject with tcp reset".into(),
            Expr::RejectPortUnreachable => "reject".into(),
            Expr::Counter => "counter packets 0 bytes 0".into(),
            Expr::Verdict(Verdict::Accept) => "accept".into(),
            Expr::Verdict(Verdict::Drop) => "drop".into(),
            Expr::Verdict(Verdict::Jump(chain)) => format!("jump {chain}"),
            Expr::Other(name) => format!("[{name}]"),
        };
        Some(statement)
    }

    fn field(&self, field: Field) -> (String, Format) {
        match (field, describe(field)) {
            (Field::SPORT | Field::DPORT, Some((port, format))) => {
                (format!("{} {port}", self.protocol), format)
            }
            (_, Some((name, format))) => (name.to_owned(), format),
            (_, None) => (format!("[{:?}]", field.0), Format::Number),
        }
    }

    /// Like [`Self::stored`], of a mark.
    fn stored_mark(&self) -> String {
        match (self.name.parse::<u32>(), &self.mask) {
            (Ok(constant), None) => format!("{constant:#010x}"),
            _ => self.stored(),
        }
    }

    /// The value that a `set` statement stores.
    fn stored(&self) -> String {
        let name = &self.name;
        let Some((mask, bits)) = &self.mask else {
            return name.clone();
        };
        match (host_number(mask), host_number(bits)) {
            (mask, 0) => format!("{name} & {mask:#010x}"),
            // nft prints `& MASK ^ BITS` as an or, with the bits also set in the mask.
            (mask, bits) => format!("{name} & {:#010x} | {bits:#010x}", mask | bits),
        }
    }

    fn comparison(&mut self, cmp: Cmp, value: &[u8]) -> String {
        if self.format == Format::Protocol {
            self.protocol = if value == [17] { "udp" } else { "tcp" };
        }
        let (name, printed) = (&self.name, self.printed(value));
        let operator = match cmp {
            Cmp::Eq => "",
            Cmp::Neq => "!= ",
            Cmp::Gte => ">= ",
        };
        let Some((mask, _)) = &self.mask else {
            return format!("{name} {operator}{printed}");
        };
        let is_zero = value.iter().all(|b| *b == 0);
        match self.format {
            Format::Address => {
                let length: u32 = mask.iter().map(|b| b.count_ones()).sum();
                format!("{name} {operator}{printed}/{length}")
            }
            Format::TcpFlags if mask != value => {
                format!("{name} {operator}{printed} / {}", self.printed(mask))
            }
            // Whether one of the bits is set.
            Format::CtState | Format::CtStatus if cmp == Cmp::Neq && is_zero => {
                format!("{name} {}", self.printed(mask))
            }
            _ => {
                let operator = if cmp == Cmp::Eq { "== " } else { operator };
                format!("{name} & {} {operator}{printed}", self.printed(mask))
            }
        }
    }

    fn printed(&self, bytes: &[u8]) -> String {
        match (self.format, host_number(bytes)) {
            (Format::Interface, _) => {
                let name = bytes.split(|b| *b == 0).next().unwrap_or_default();
                format!("\"{}\"", String::from_utf8_lossy(name))
            }
            (Format::Family, 2) => "ipv4".into(),
            (Format::Family, 10) => "ipv6".into(),
            (Format::Protocol, 6) => "tcp".into(),
            (Format::Protocol, 17) => "udp".into(),
            (Format::AddressType, 2) => "local".into(),
            (Format::CtState, 8) => "new".into(),
            (Format::CtStatus, 8) => "confirmed".into(),
            (Format::Address, _) => {
                address(bytes).map_or_else(|| format!("{bytes:?}"), |a| a.to_string())
            }
            (Format::Mark, n) => format!("{n:#010x}"),
            (Format::HostNumber, n) => n.to_string(),
            (Format::TcpFlags, bits) => tcp_flags(bits),
            _ => {
                let digits = bytes.iter().map(|b| u64::from(*b));
                digits.fold(0, |n, b| (n << 8) | b).to_string()
            }
        }
    }
}

/// A number of up to four bytes in the machine's byte order; 0 for other lengths.
fn host_number(bytes: &[u8]) -> u32 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn tcp_flags(bits: u32) -> String {
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let set = (0..8).filter(|i| bits & (1 << i) != 0);
    set.map(|i| names[i]).collect::<Vec<_>>().join(",")
}
