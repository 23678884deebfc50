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

use crate::data::{Lifecycle, ProxyState};
use crate::effective::EffectiveSettings;
use crate::inpod::{Pods, ServedPodStatus};
use admin_http::{HttpRequest, HttpResponse, Reply, json, metrics, not_found, text};
use http::StatusCode;
use identity::{CertificateState, Certificates};
use serde::Serialize;
use telemetry::LogFilter;
use tokio::sync::Notify;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusResponse {
    version: &'static str,
    ready: bool,
    connections: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_plane: Option<discovery::DiscoveryReport>,
    certificate_source: String,
    certificates: Vec<CertificateStatus>,
    trust: identity::TrustReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    revocation_trouble: Option<String>,
    pods: Vec<ServedPodStatus>,
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

/// Paths of the admin interface.
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

/// What the admin, metrics and readiness endpoints report.
pub(crate) struct AdminState {
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) pods: Rc<Pods>,
    pub(crate) certificates: Rc<Certificates>,
    /// State of the discovery stream; `None` with a mesh file.
    pub(crate) plane: Option<Arc<discovery::DiscoveryStatus>>,
    /// Whether a complete mesh has been received.
    pub(crate) has_mesh: Cell<bool>,
    /// Log levels.
    pub(crate) filter: LogFilter,
    /// Notified when a client asks the proxy to stop.
    pub(crate) quit: Rc<Notify>,
    /// Network of this node.
    pub(crate) network: String,
    /// Source of the mesh, in words.
    pub(crate) source: String,
    /// Effective settings.
    pub(crate) effective: EffectiveSettings,
}

impl AdminState {
    /// Responds on the admin address, which serves clients on the node.
    pub(crate) fn admin(&self, request: &HttpRequest<'_>) -> Reply {
        if let Some(reply) = pprof::respond(request) {
            return reply;
        }
        let response = match request.path {
            "/status" => json(&self.status()),
            "/config_dump" => json(&self.config_dump()),
            "/why" => why::respond(
                &self.proxy.mesh.load(),
                &self.network,
                &self.source,
                || self.pods.status(),
                request.query,
            ),
            "/logging" => logging::respond(&self.filter, request),
            "/quitquitquit" => quit::respond(&self.quit, request),
            "/metrics" => self.metrics(),
            "/" => text(
                StatusCode::OK,
                format!(
                    "underpass-proxy {}\n{}\n",
                    env!("CARGO_PKG_VERSION"),
                    PATHS.join("\n")
                ),
            ),
            _ => not_found(&PATHS),
        };
        response.into()
    }

    /// Responds on the stats address, which metrics scrapers use.
    pub(crate) fn stats(&self, request: &HttpRequest<'_>) -> HttpResponse {
        match request.path {
            "/metrics" | "/stats/prometheus" => self.metrics(),
            _ => not_found(&["/metrics", "/stats/prometheus"]),
        }
    }

    /// Responds on the readiness address, which the kubelet probes.
    pub(crate) fn health(&self, request: &HttpRequest<'_>) -> Reply {
        match request.path {
            "/healthz/ready" => self.readiness().into(),
            // No answer is a hang: of this thread, or of a worker.
            "/healthz/live" => {
                let pinged = self.pods.ping_workers();
                Reply::later(async move {
                    pinged.await;
                    text(StatusCode::OK, "live\n")
                })
            }
            _ => not_found(&["/healthz/ready", "/healthz/live"]).into(),
        }
    }

    fn readiness(&self) -> HttpResponse {
        let unready = |reason: &str| {
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("not ready, {reason}\n"),
            )
        };
        if *self.proxy.lifecycle.borrow() != Lifecycle::Serving {
            return unready("stopping");
        }
        match self.pending()[..] {
            [] => text(StatusCode::OK, "ready\n"),
            ref pending => unready(&format!("pending: {}", pending.join(", "))),
        }
    }

    /// Tasks to complete before the proxy is ready, under the names that ztunnel uses if it has
    /// them.
    fn pending(&self) -> Vec<&'static str> {
        let tasks = [
            ("state manager", self.has_mesh.get()),
            (
                "revocation lists",
                self.certificates.is_revocation_effective(),
            ),
            ("workload proxy manager", self.pods.all_served()),
        ];
        tasks
            .into_iter()
            .filter(|(_, done)| !done)
            .map(|(task, _)| task)
            .collect()
    }

    fn status(&self) -> StatusResponse {
        let now = SystemTime::now();
        let certificate = |(identity, certificate): (mesh::Identity, CertificateState)| {
            let state = match (&certificate.credentials, certificate.valid(now)) {
                (_, Some(_)) => "Available",
                (Some(_), None) => "Expired",
                (None, None) => "Initializing",
            };
            let validity = certificate.credentials.as_ref().map(|c| &c.validity);
            CertificateStatus {
                identity: identity.to_string(),
                state,
                serial: validity.map(|v| v.serial.clone()),
                expires_in_s: validity.map(|v| {
                    v.not_after
                        .duration_since(now)
                        .unwrap_or_default()
                        .as_secs()
                }),
                trouble: certificate.last_error.map(|e| e.to_string()),
            }
        };
        StatusResponse {
            version: env!("CARGO_PKG_VERSION"),
            ready: self.pending().is_empty()
                && *self.proxy.lifecycle.borrow() == Lifecycle::Serving,
            connections: self.proxy.connections.load(Ordering::Relaxed),
            control_plane: self.plane.as_ref().map(|p| p.report()),
            certificate_source: self.certificates.describe_source(),
            certificates: self
                .certificates
                .all()
                .into_iter()
                .map(certificate)
                .collect(),
            trust: self.certificates.trust_report(),
            revocation_trouble: self.certificates.revocation_error(),
            pods: self.pods.status(),
        }
    }

    fn metrics(&self) -> HttpResponse {
        if let Some(age) = self.plane.as_ref().and_then(|p| p.report().state_age_s) {
            let age = i64::try_from(age).unwrap_or(i64::MAX);
            self.proxy.metrics.state_age.set(age);
        }
        metrics(self.proxy.metrics.encode())
    }

    fn config_dump(&self) -> serde_json::Value {
        let mesh = self.proxy.mesh.load();
        dump::config_dump(
            &mesh,
            &self.certificates.all(),
            &self.pods.status(),
            &self.proxy.metrics.open.all(),
            &self.effective,
        )
    }
}
