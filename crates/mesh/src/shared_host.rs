//! Services that share an address or a host name, such as ServiceEntries of several namespaces. A
//! client gets the address of one of them; each port leads to one that has it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::address::OrigDst;
use crate::endpoints::Group;
use crate::gateway::Vip;
use crate::service::Service;
use crate::snapshot::{Mesh, scoped};
use crate::workload::Workload;

/// The service that a destination belongs to.
pub(crate) struct AddressedService<'m> {
    pub(crate) group: &'m Group,
    pub(crate) service: &'m Arc<Service>,
    /// The destination at an address of this service.
    pub(crate) orig_dst: OrigDst,
    /// The service of the address, if that has no such port.
    pub(crate) instead_of: Option<&'m Arc<Service>>,
}

impl Mesh {
    /// The service that a connection of `source` to `orig_dst` addresses: that of the address, or
    /// if it does not have the port, one with the same address or else the same host name that has
    /// it.
    pub(crate) fn addressed_service(
        &self,
        source: &Workload,
        orig_dst: OrigDst,
    ) -> Option<AddressedService<'_>> {
        let (ip, port) = (orig_dst.ip(), orig_dst.port());
        let group = self.group_by_vip(&source.network, ip, &source.namespace)?;
        let service = group.service.as_ref()?;
        let addressed = AddressedService {
            group,
            service,
            orig_dst,
            instead_of: None,
        };
        if service.ports.get(port).is_some() || group.choose(port, source, 0, |_| true).is_some() {
            return Some(addressed);
        }
        let namespace = source.namespace.as_str();
        let other = with_port(self.groups_by_vip(&source.network, ip, namespace), port)
            .map(|(group, other)| (group, other, orig_dst))
            .or_else(|| {
                let hostname = service.hostname.to_ascii_lowercase();
                let all = self.groups_by_hostname(&hostname, namespace);
                let (group, other) = with_port(all, port)?;
                let own = own_address(other, source, ip).unwrap_or(ip);
                Some((group, other, OrigDst(SocketAddr::new(own, port))))
            });
        Some(match other {
            Some((group, other, orig_dst)) => AddressedService {
                group,
                service: other,
                orig_dst,
                instead_of: Some(service),
            },
            None => addressed,
        })
    }

    /// All services with this single address, best first; see
    /// [`service_by_vip`](Self::service_by_vip).
    pub(crate) fn groups_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: &str,
    ) -> Vec<&Arc<Group>> {
        let keys = self.by_vip.get(&scoped(network, ip));
        keys.map_or_else(Vec::new, |keys| self.ranked(keys, namespace))
    }

    /// All services with this host name, best first; see
    /// [`service_by_hostname`](Self::service_by_hostname).
    pub(crate) fn groups_by_hostname(&self, hostname: &str, namespace: &str) -> Vec<&Arc<Group>> {
        let keys = self.by_hostname.get(hostname);
        keys.map_or_else(Vec::new, |keys| self.ranked(keys, namespace))
    }
}

/// The first of these services that has a port.
fn with_port(all: Vec<&Arc<Group>>, port: u16) -> Option<(&Group, &Arc<Service>)> {
    let services = all
        .into_iter()
        .filter_map(|group| Some((group.as_ref(), group.service.as_ref()?)));
    services
        .into_iter()
        .find(|(_, service)| service.ports.get(port).is_some())
}

/// An address of the service in the client's network, preferably of the same family as `like`.
fn own_address(service: &Service, source: &Workload, like: IpAddr) -> Option<IpAddr> {
    let own = service.vips.iter().filter(|v| v.network == source.network);
    own.filter_map(Vip::address)
        .min_by_key(|ip| ip.is_ipv6() != like.is_ipv6())
}
