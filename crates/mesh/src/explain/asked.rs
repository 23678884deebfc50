//! Who and what a question is about.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Question, Unanswerable};
use crate::gateway::Vip;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::workload::Workload;

/// Who connects.
pub(super) fn source(mesh: &Mesh, question: &Question<'_>) -> Result<Arc<Workload>, Unanswerable> {
    let asked = question.source;
    let found = match asked.parse::<IpAddr>() {
        Ok(ip) => mesh.workload_by_ip(question.network, ip.to_canonical()).into_iter().cloned().collect(),
        Err(_) => workloads_named(mesh, asked),
    };
    one(asked, found, |w| w.uid.to_string())?.ok_or_else(|| Unanswerable::NoSource(asked.to_owned()))
}

/// Where to.
pub(super) fn destination(mesh: &Mesh, question: &Question<'_>, source: &Workload) -> Result<SocketAddr, Unanswerable> {
    let asked = question.destination;
    let which_port = |hint: String| Unanswerable::WhichPort(asked.to_owned(), hint);
    if let Ok(ip) = asked.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let service = mesh.service_by_vip(&source.network, ip, &source.namespace);
        let port = port_of(question, service.map(Arc::as_ref)).map_err(which_port)?;
        return Ok(SocketAddr::new(ip, port));
    }
    let like = |ip: &IpAddr| source.workload_ips.iter().any(|own| own.is_ipv6() == ip.is_ipv6());
    let best = |ips: Vec<IpAddr>| ips.iter().copied().find(like).or(ips.first().copied());
    let service = match mesh.service_by_hostname(&asked.trim_end_matches('.').to_ascii_lowercase(), &source.namespace) {
        Some(service) => Some(service.clone()),
        None => one(asked, services_named(mesh, asked, &source.namespace), |s| s.key())?,
    };
    // A service and a pod of one name: the application would ask for the service.
    if let Some(service) = service {
        let port = port_of(question, Some(&service)).map_err(which_port)?;
        let own = service.vips.iter().filter(|v| v.network == source.network).filter_map(Vip::address).collect();
        return match best(own) {
            Some(ip) => Ok(SocketAddr::new(ip, port)),
            None => Err(which_port("the service has no address of its own; ask about one of its workloads".to_owned())),
        };
    }
    let workload = one(asked, workloads_named(mesh, asked), |w| w.uid.to_string())?;
    let ip = workload.and_then(|w| best(w.workload_ips.clone()));
    let ip = ip.ok_or_else(|| Unanswerable::NoDestination(asked.to_owned()))?;
    Ok(SocketAddr::new(ip, port_of(question, None).map_err(which_port)?))
}

fn port_of(question: &Question<'_>, service: Option<&Service>) -> Result<u16, String> {
    if let Some(port) = question.port {
        return Ok(port);
    }
    let ports: Vec<u16> = service.into_iter().flat_map(|s| s.ports.as_slice().iter().map(|(port, _)| *port)).collect();
    match ports[..] {
        [port] => Ok(port),
        [] => Err("say DESTINATION:PORT".to_owned()),
        _ => Err(format!("it has {}", ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
    }
}

fn workloads_named(mesh: &Mesh, asked: &str) -> Vec<Arc<Workload>> {
    match asked.split_once('/') {
        Some((namespace, name)) => mesh.workloads_by_name(namespace, name).to_vec(),
        None => mesh.workloads().filter(|w| w.name == *asked).cloned().collect(),
    }
}

/// By NAME in the namespace of who asks, or by NAMESPACE/NAME.
fn services_named(mesh: &Mesh, asked: &str, namespace: &str) -> Vec<Arc<Service>> {
    let (namespace, name) = asked.split_once('/').unwrap_or((namespace, asked));
    mesh.services().filter(|s| s.namespace == *namespace && (s.name == *name || s.hostname == *name)).cloned().collect()
}

fn one<T>(asked: &str, mut found: Vec<Arc<T>>, key: impl Fn(&T) -> String) -> Result<Option<Arc<T>>, Unanswerable> {
    if found.len() > 1 {
        let keys: Vec<String> = found.iter().map(|f| key(f)).collect();
        return Err(Unanswerable::Ambiguous(asked.to_owned(), keys.join(", ")));
    }
    Ok(found.pop())
}
