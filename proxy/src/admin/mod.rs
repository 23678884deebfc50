//! Admin, metrics and readiness over HTTP.

mod dump;
mod logging;
mod pprof;
mod profile;
mod quit;
mod why;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use admin_http::{Answer, Asked, Reply, json, metrics, not_found, text};
use http::StatusCode;
use serde::Serialize;
use tokio::sync::Notify;

use self::dump::Dump;
use crate::control;
use crate::data::{Node, Phase};
use crate::effective::Effective;
use crate::identity::{Certificates, Held};
use crate::inpod::{PodStatus, Pods};
use crate::telemetry::LogFilter;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: &'static str,
    ready: bool,
    connections: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_plane: Option<control::Report>,
    certificate_source: String,
    certificates: Vec<CertificateStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation_trouble: Option<String>,
    pods: Vec<PodStatus>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateStatus {
    identity: String,
    /// Available, Expired or Initializing.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

/// What there is.
const PATHS: [&str; 9] = [
    "/status",
    "/config_dump",
    "/why?source=…&destination=…",
    "/logging",
    "/quitquitquit",
    "/metrics",
    "/debug/pprof/profile?seconds=…&frequency=…",
    "/debug/pprof/heap",
    "/debug/pprof/heap/profiling?activate=…",
];

/// What is told to whoever asks.
pub(crate) struct Told {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: Rc<Pods>,
    pub(crate) certificates: Rc<Certificates>,
    /// How the proxy stands with the control plane, if it has one.
    pub(crate) plane: Option<Arc<control::Status>>,
    /// Whether it is known what pods may reach.
    pub(crate) has_mesh: Cell<bool>,
    /// What is logged.
    pub(crate) filter: LogFilter,
    /// Told when somebody asks the proxy to stop.
    pub(crate) quit: Rc<Notify>,
    /// The network of this node.
    pub(crate) network: String,
    /// Where the mesh comes from, in words.
    pub(crate) source: String,
    /// The settings in force.
    pub(crate) effective: Effective,
}

impl Told {
    /// The admin interface, for people on the node.
    pub(crate) fn admin(&self, asked: &Asked<'_>) -> Reply {
        if let Some(profile) = pprof::answer(asked) {
            return profile;
        }
        let answer = match asked.path {
            "/status" => json(&self.status()),
            "/config_dump" => json(&self.config_dump()),
            "/why" => why::answer(&self.node.mesh.load(), &self.network, &self.source, asked.query),
            "/logging" => logging::answer(&self.filter, asked),
            "/quitquitquit" => quit::answer(&self.quit, asked),
            "/metrics" => self.metrics(),
            "/" => {
                text(StatusCode::OK, format!("underpass-proxy {}\n{}\n", env!("CARGO_PKG_VERSION"), PATHS.join("\n")))
            }
            _ => not_found(&PATHS),
        };
        answer.into()
    }

    /// What a scraper asks for.
    pub(crate) fn stats(&self, asked: &Asked<'_>) -> Answer {
        match asked.path {
            "/metrics" | "/stats/prometheus" => self.metrics(),
            _ => not_found(&["/metrics", "/stats/prometheus"]),
        }
    }

    /// What a kubelet asks for.
    pub(crate) fn readiness(&self, asked: &Asked<'_>) -> Answer {
        let not = |why: &str| text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, {why}\n"));
        match asked.path {
            "/healthz/ready" if *self.node.phase.borrow() != Phase::Serving => not("stopping"),
            "/healthz/ready" => match self.pending()[..] {
                [] => text(StatusCode::OK, "ready\n"),
                ref pending => not(&format!("pending: {}", pending.join(", "))),
            },
            _ => not_found(&["/healthz/ready"]),
        }
    }

    /// What is awaited before the proxy is ready, in ztunnel's words.
    fn pending(&self) -> Vec<&'static str> {
        let tasks = [("state manager", self.has_mesh.get()), ("workload proxy manager", self.pods.all_served())];
        tasks.into_iter().filter(|(_, done)| !done).map(|(task, _)| task).collect()
    }

    fn status(&self) -> Status {
        let now = SystemTime::now();
        let certificate = |(identity, held): (mesh::Identity, Held)| {
            let state = match (&held.credentials, held.valid(now)) {
                (_, Some(_)) => "Available",
                (Some(_), None) => "Expired",
                (None, None) => "Initializing",
            };
            let validity = held.credentials.as_ref().map(|c| &c.validity);
            CertificateStatus {
                identity: identity.to_string(),
                state,
                serial: validity.map(|v| v.serial.clone()),
                expires_in_s: validity.map(|v| v.not_after.duration_since(now).unwrap_or_default().as_secs()),
                trouble: held.trouble,
            }
        };
        Status {
            version: env!("CARGO_PKG_VERSION"),
            ready: self.pending().is_empty() && *self.node.phase.borrow() == Phase::Serving,
            connections: self.node.connections.load(Ordering::Relaxed),
            control_plane: self.plane.as_ref().map(|p| p.report()),
            certificate_source: self.certificates.source(),
            certificates: self.certificates.all().into_iter().map(certificate).collect(),
            revocation_trouble: self.certificates.revocation_trouble(),
            pods: self.pods.status(),
        }
    }

    fn metrics(&self) -> Answer {
        if let Some(age) = self.plane.as_ref().and_then(|p| p.report().state_age_s) {
            self.node.metrics.control.state_age.set(i64::try_from(age).unwrap_or(i64::MAX));
        }
        metrics(self.node.metrics.encode())
    }

    fn config_dump(&self) -> serde_json::Value {
        let mesh = self.node.mesh.load();
        serde_json::json!(Dump::new(
            &mesh,
            &self.certificates.all(),
            &self.pods.status(),
            &self.node.metrics.open.all(),
            &self.effective,
        ))
    }
}
