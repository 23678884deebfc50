//! What passes packets of a pod's interfaces below its network stack: traffic control, XDP, and
//! interfaces of virtual machines.

use std::collections::BTreeMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
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

/// Describes what passes packets below the network stack of the namespace.
pub(crate) fn below_the_stack(routing: &Routing) -> Result<Vec<String>, RedirectError> {
    let dump = |request, what: &str| routing.dump(request).map_err(failed(what));
    let links = dump(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        "cannot list interfaces",
    )?;
    let mut out = Vec::new();
    let mut names = BTreeMap::new();
    for body in &links {
        let Some((header, rest)) = body.split_at_checked(LINK_HEADER) else {
            continue;
        };
        let link = attributes(rest);
        let name = link.get(&IFLA_IFNAME).map(|n| text(n)).unwrap_or_default();
        let nested = |outer, inner| attributes(link.get(&outer)?).remove(&inner);
        let kind = nested(IFLA_LINKINFO, IFLA_INFO_KIND).map(text);
        if let Some(kind @ ("macvtap" | "ipvtap")) = kind.as_deref() {
            out.push(format!(
                "{name} is a {kind} interface: a virtual machine sends and receives there"
            ));
        }
        let xdp = nested(IFLA_XDP, IFLA_XDP_ATTACHED);
        if xdp.is_some_and(|attached| attached.first() != Some(&0)) {
            out.push(format!("an XDP program handles incoming packets of {name}"));
        }
        names.insert(index(header), name);
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
            request.header.index = index(header);
            request.header.parent = TcHandle::from(parent);
            let filters = dump(
                RouteNetlinkMessage::GetTrafficFilter(request),
                "cannot list filters of traffic control",
            )?;
            if filters.iter().any(|body| moves_packets(body)) {
                let name = names.get(&index(header)).map_or("an interface", |n| n);
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
fn index(header: &[u8]) -> i32 {
    let bytes = header.get(4..8).and_then(|b| b.try_into().ok());
    bytes.map_or(0, i32::from_ne_bytes)
}

/// A text with a terminating zero.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}
