//! `/config_dump`, in the shape of ztunnel's, which `istioctl ztunnel-config` reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh::gateway::Vip;
use mesh::{Identity, Mesh, Policy, Service, Workload};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::identity::Held;
use crate::inpod::PodStatus;

/// What is dumped.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dump<'a> {
    pub(crate) workloads: Vec<&'a Arc<Workload>>,
    pub(crate) services: Vec<DumpedService<'a>>,
    pub(crate) policies: Vec<&'a Arc<Policy>>,
    /// Services that workloads belong to and that nobody has told of, with these workloads.
    pub(crate) staged_services: Value,
    pub(crate) certificates: Vec<DumpedCertificate>,
    /// The pods of this node, by uid.
    pub(crate) workload_state: BTreeMap<String, Value>,
    pub(crate) version: Value,
}

/// A service with its endpoints, by uid.
#[derive(Serialize)]
pub(crate) struct DumpedService<'a> {
    #[serde(flatten)]
    service: Value,
    endpoints: BTreeMap<&'a str, Value>,
}

/// The certificates of an identity.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DumpedCertificate {
    identity: String,
    /// Available, Initializing, or why there is none.
    state: String,
    cert_chain: Vec<DumpedPem>,
    root_certs: Vec<DumpedPem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DumpedPem {
    /// PEM, in base64.
    pem: String,
    /// In decimal digits.
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl<'a> Dump<'a> {
    /// Everything of a snapshot, and what is held for its pods.
    pub(crate) fn new(mesh: &'a Mesh, certificates: &[(Identity, Held)], pods: &[PodStatus]) -> Self {
        let staged = mesh.staged_services();
        Self {
            workloads: mesh.workloads().collect(),
            services: mesh.services().map(|s| service(mesh, s)).collect(),
            policies: mesh.policies().collect(),
            staged_services: json!(staged.into_iter().map(|(k, v)| (k.as_str(), v)).collect::<BTreeMap<_, _>>()),
            certificates: certificates.iter().map(|(identity, held)| certificate(identity, held)).collect(),
            workload_state: pods.iter().map(state).collect(),
            version: json!({ "version": env!("CARGO_PKG_VERSION"), "component": "underpass-proxy" }),
        }
    }
}

fn service<'a>(mesh: &'a Mesh, service: &Service) -> DumpedService<'a> {
    let key = service.key();
    let endpoints = mesh.endpoints(service).map(|e| {
        let uid = e.workload.uid.as_str();
        (uid, json!({ "workloadUid": uid, "service": key, "port": e.ports, "status": e.workload.status }))
    });
    let mut value = json!(service);
    // Ranges stand apart from addresses, for readers that know addresses only.
    let (ranges, addresses): (Vec<&Vip>, Vec<&Vip>) = service.vips.iter().partition(|v| v.address().is_none());
    value["vips"] = addresses.iter().map(|v| json!(v)).collect();
    if !ranges.is_empty() {
        value["cidrVips"] = ranges.iter().map(|v| json!({ "network": v.network, "cidr": v.net })).collect();
    }
    DumpedService { service: value, endpoints: endpoints.collect() }
}

fn certificate(identity: &Identity, held: &Held) -> DumpedCertificate {
    let state = match (&held.credentials, held.valid(SystemTime::now()), &held.trouble) {
        (_, Some(_), _) => "Available".to_owned(),
        (_, None, Some(trouble)) => format!("Unavailable: {trouble}"),
        (Some(_), None, None) => "Expired".to_owned(),
        (None, None, None) => "Initializing".to_owned(),
    };
    let of = |certificates: &[CertificateDer<'_>]| certificates.iter().filter_map(pem).collect();
    DumpedCertificate {
        identity: identity.to_string(),
        state,
        cert_chain: held.credentials.as_ref().map(|c| of(c.chain())).unwrap_or_default(),
        root_certs: held.credentials.as_ref().map(|c| of(c.roots())).unwrap_or_default(),
    }
}

fn pem(certificate: &CertificateDer<'_>) -> Option<DumpedPem> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let body = STANDARD.encode(certificate);
    let lines: Vec<&str> = (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
    let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    Some(DumpedPem {
        pem: STANDARD.encode(text),
        serial_number: parsed.tbs_certificate.serial.to_str_radix(10),
        valid_from: rfc3339(parsed.validity().not_before),
        expiration_time: rfc3339(parsed.validity().not_after),
    })
}

fn rfc3339(time: ASN1Time) -> String {
    let t = time.to_datetime();
    let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", t.hour(), t.minute(), t.second())
}

fn state(pod: &PodStatus) -> (String, Value) {
    (pod.uid.clone(), json!(pod))
}
