//! A pod's interfaces, and what passes their packets below its network stack: traffic control, XDP,
//! and interfaces of virtual machines.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::tc::{TcHandle, TcMessage};

use crate::error::{RedirectError, failed};
use crate::raw::attributes;
use crate::routing::Routing;

/// Length of `struct ifinfomsg` and of `struct tcmsg`.
const LINK_HEADER: usize = 16;
const TC_HEADER: usize = 20;

/// linux/if_link.h
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;

/// linux/rtnetlink.h
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// The filters of incoming and outgoing packets (linux/pkt_sched.h: TC_H_MIN_INGRESS,
/// TC_H_MIN_EGRESS).
const PARENTS: [(&str, u32); 2] = [("incoming", 0xffff_fff2), ("outgoing", 0xffff_fff3)];

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Its kind, such as `veth`; hardware has none.
    kind: Option<String>,
    has_xdp: bool,
}

impl Link {
    /// Lists the interfaces of the namespace.
    pub(crate) fn list(routing: &Routing) -> Result<Vec<Self>, RedirectError> {
        let mut m = LinkMessage::default();
        // Counters take most of the time, and are not used.
        let without = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        m.attributes.push(without);
        let links = routing.dump(RouteNetlinkMessage::GetLink(m));
        let links = links.map_err(failed("cannot list interfaces"))?;
        Ok(links.iter().filter_map(|body| Self::of(body)).collect())
    }

    /// Decodes the body of a message.
    fn of(body: &[u8]) -> Option<Self> {
        let (header, rest) = body.split_at_checked(LINK_HEADER)?;
        let link = attributes(rest);
        let nested = |outer, inner| attributes(link.get(&outer)?).remove(&inner);
        let xdp = nested(IFLA_XDP, IFLA_XDP_ATTACHED);
        Some(Self {
            index: index(header),
            name: link.get(&IFLA_IFNAME).map(|n| text(n)).unwrap_or_default(),
            kind: nested(IFLA_LINKINFO, IFLA_INFO_KIND).map(text),
            has_xdp: xdp.is_some_and(|attached| attached.first() != Some(&0)),
        })
    }

    pub(crate) fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }
}

/// Describes what passes packets below the network stack of the namespace.
pub(crate) fn below_the_stack(
    routing: &Routing,
    links: &[Link],
) -> Result<Vec<String>, RedirectError> {
    let dump = |request, what: &str| routing.dump(request).map_err(failed(what));
    let mut out = Vec::new();
    for Link {
        name,
        kind,
        has_xdp,
        ..
    } in links
    {
        if let Some(kind @ ("macvtap" | "ipvtap")) = kind.as_deref() {
            out.push(format!(
                "{name} is a {kind} interface: a virtual machine sends and receives there"
            ));
        }
        if *has_xdp {
            out.push(format!("an XDP program handles incoming packets of {name}"));
        }
    }
    let qdiscs = dump(
        RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
        "cannot list queueing disciplines",
    )?;
    for qdisc in &qdiscs {
        let Some((header, rest)) = qdisc.split_at_checked(TC_HEADER) else {
            continue;
        };
        let kind = attributes(rest).get(&TCA_KIND).map(|kind| text(kind));
        if !matches!(kind.as_deref(), Some("ingress" | "clsact")) {
            continue;
        }
        for (direction, parent) in PARENTS {
            let mut request = TcMessage::default();
            request.header.index = index(header).cast_signed();
            request.header.parent = TcHandle::from(parent);
            let filters = dump(
                RouteNetlinkMessage::GetTrafficFilter(request),
                "cannot list filters of traffic control",
            )?;
            if filters.iter().any(|body| moves_packets(body)) {
                let link = links.iter().find(|link| link.index == index(header));
                let name = link.map_or("an interface", |link| &link.name);
                out.push(format!(
                    "traffic control moves {direction} packets of {name} to another interface or \
                     a program"
                ));
            }
        }
    }
    Ok(out)
}

/// Whether a filter has the action mirred, which passes packets to another interface, or is a BPF
/// program, which may do so.
fn moves_packets(filter: &[u8]) -> bool {
    let filter = attributes(filter.get(TC_HEADER..).unwrap_or_default());
    let kind = filter.get(&TCA_KIND).map(|kind| text(kind));
    let options = filter.get(&TCA_OPTIONS).map_or(&[][..], |o| o);
    kind.as_deref() == Some("bpf")
        || [&b"mirred\0"[..], b"bpf\0"]
            .iter()
            .any(|action| options.windows(action.len()).any(|w| w == *action))
}

/// The index of the interface, in the same place of both headers.
fn index(header: &[u8]) -> u32 {
    let bytes = header.get(4..8).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

/// A text with a terminating zero.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}
