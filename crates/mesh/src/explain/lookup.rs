//! Resolves the source and the destination of a question.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::explanation::{ExplainError, Question};
use crate::gateway::Vip;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::workload::Workload;

/// Finds the client's workload.
pub(super) fn source(mesh: &Mesh, question: &Question<'_>) -> Result<Arc<Workload>, ExplainError> {
    let text = question.source;
    let found = match text.parse::<IpAddr>() {
        Ok(ip) => mesh
            .workload_by_ip(question.network, ip.to_canonical())
            .into_iter()
            .cloned()
            .collect(),
        Err(_) => workloads_named(mesh, text),
    };
    at_most_one(text, found, |w| w.uid.to_string())?
        .ok_or_else(|| ExplainError::NoSource(text.to_owned()))
}

/// Finds the destination address.
pub(super) fn destination(
    mesh: &Mesh,
    question: &Question<'_>,
    source: &Workload,
) -> Result<SocketAddr, ExplainError> {
    let text = question.destination;
    let which_port = |hint: String| ExplainError::WhichPort(text.to_owned(), hint);
    if let Ok(ip) = text.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let service = mesh.service_by_vip(&source.network, ip, &source.namespace);
        let port = port_of(question, service.map(Arc::as_ref)).map_err(which_port)?;
        return Ok(SocketAddr::new(ip, port));
    }
    let like = |ip: &IpAddr| {
        source
            .workload_ips
            .iter()
            .any(|own| own.is_ipv6() == ip.is_ipv6())
    };
    let best = |ips: Vec<IpAddr>| ips.iter().copied().find(like).or(ips.first().copied());
    let service = match mesh.service_by_hostname(
        &text.trim_end_matches('.').to_ascii_lowercase(),
        &source.namespace,
    ) {
        Some(service) => Some(service.clone()),
        None => at_most_one(text, services_named(mesh, text, &source.namespace), |s| {
            s.key()
        })?,
    };
    // If a service and a pod have the same name, an application resolves the service.
    if let Some(service) = service {
        let port = port_of(question, Some(&service)).map_err(which_port)?;
        let own = service
            .vips
            .iter()
            .filter(|v| v.network == source.network)
            .filter_map(Vip::address)
            .collect();
        return match best(own) {
            Some(ip) => Ok(SocketAddr::new(ip, port)),
            None => Err(which_port(
                "the service has no virtual address; use one of its workloads".to_owned(),
            )),
        };
    }
    let workload = at_most_one(text, workloads_named(mesh, text), |w| w.uid.to_string())?;
    let ip = workload.and_then(|w| best(w.workload_ips.clone()));
    let ip = ip.ok_or_else(|| ExplainError::NoDestination(text.to_owned()))?;
    Ok(SocketAddr::new(
        ip,
        port_of(question, None).map_err(which_port)?,
    ))
}

fn port_of(question: &Question<'_>, service: Option<&Service>) -> Result<u16, String> {
    if let Some(port) = question.port {
        return Ok(port);
    }
    let ports: Vec<u16> = service
        .into_iter()
        .flat_map(|s| s.ports.as_slice().iter().map(|(port, _)| *port))
        .collect();
    match ports[..] {
        [port] => Ok(port),
        [] => Err("use DESTINATION:PORT".to_owned()),
        _ => Err(format!(
            "it has ports {}",
            ports
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

fn workloads_named(mesh: &Mesh, text: &str) -> Vec<Arc<Workload>> {
    match text.split_once('/') {
        Some((namespace, name)) => mesh.workloads_by_name(namespace, name).to_vec(),
        None => mesh
            .workloads()
            .filter(|w| w.name == *text)
            .cloned()
            .collect(),
    }
}

/// Finds services by NAME in the client's namespace, or by NAMESPACE/NAME.
fn services_named(mesh: &Mesh, text: &str, namespace: &str) -> Vec<Arc<Service>> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    mesh.services()
        .filter(|s| s.namespace == *namespace && (s.name == *name || s.hostname == *name))
        .cloned()
        .collect()
}

fn at_most_one<T>(
    text: &str,
    mut found: Vec<Arc<T>>,
    key: impl Fn(&T) -> String,
) -> Result<Option<Arc<T>>, ExplainError> {
    if found.len() > 1 {
        let keys: Vec<String> = found.iter().map(|f| key(f)).collect();
        return Err(ExplainError::Ambiguous(text.to_owned(), keys.join(", ")));
    }
    Ok(found.pop())
}
