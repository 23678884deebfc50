//! The admin HTTP endpoints: status, verification, metrics and readiness.

use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use admin_http::{HttpRequest, HttpResponse, Reply, json, metrics, not_found, text};
use agent_status::{
    ContainerCapabilities, EnrolmentReason, ExclusionsStatus, NodeStatus, PodState, PodStatus,
};
use handoff::PodRef;
use http::{Method, StatusCode};
use pod_life::{Life, Membership, Phase, Pods, Sandbox, Standing};
use redirect::Plan;
use tokio::sync::oneshot;

use crate::capture_choice::CaptureChoice;
use crate::host_probes::HostProbes;
use crate::inbox::{Inbox, Message};
use crate::metrics::Metrics;
use crate::pods_view::PodsView;
use crate::readiness::Readiness;

/// What the endpoints report.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) node: String,
    pub(crate) pods: PodsView,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Rc<Metrics>,
    pub(crate) capture: CaptureChoice,
    pub(crate) host_probes: Rc<HostProbes>,
    pub(crate) inbox: Inbox,
}

/// Answers one request.
pub(crate) fn answer(admin: &Rc<Admin>, asked: &HttpRequest<'_>) -> Reply {
    let answer = match asked.path {
        "/status" => json(&admin.status()),
        "/verify" if asked.method == Method::POST => return verify(admin, asked.query),
        "/verify" => text(
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed: use POST\n",
        ),
        "/metrics" => admin.scraped(),
        "/healthz" => return health(admin),
        "/readyz" => match admin.readiness.missing() {
            None => text(StatusCode::OK, "ready\n"),
            Some((_, why)) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        },
        _ => not_found(&[
            "/status",
            "/verify?pod=NAMESPACE/NAME",
            "/metrics",
            "/healthz",
            "/readyz",
        ]),
    };
    answer.into()
}

/// Answers a request of a scraper.
pub(crate) fn scrape(admin: &Rc<Admin>, asked: &HttpRequest<'_>) -> HttpResponse {
    match asked.path {
        "/metrics" => admin.scraped(),
        _ => not_found(&["/metrics"]),
    }
}

/// Answers once the agent's loop has handled a message. No answer is a hang: the loop waits neither
/// for a pod nor for the kernel, the disk or the API server.
fn health(admin: &Admin) -> Reply {
    let (done, handled) = oneshot::channel();
    admin.inbox.send(Message::Ping(done));
    Reply::later(async move {
        match handled.await {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n"),
        }
    })
}

/// The exclusions of a plan, if it has any.
fn exclusions(plan: &Plan) -> Option<ExclusionsStatus> {
    let exclude = plan.exclude.clone();
    let exclusions = ExclusionsStatus {
        bypass_inbound: plan.bypass_inbound,
        inbound_ports: exclude.inbound_ports.into_iter().collect(),
        inbound_cidrs: exclude.inbound_cidrs.into_iter().collect(),
        outbound_ports: exclude.outbound_ports.into_iter().collect(),
        outbound_cidrs: exclude.outbound_cidrs.into_iter().collect(),
    };
    (exclusions != ExclusionsStatus::default()).then_some(exclusions)
}

/// Updates the gauges that are computed at each scrape.
fn update_gauges(metrics: &Metrics, pods: &Pods) {
    metrics.verification_age.set(verification_age(pods));
    let memberships = pods.iter().filter_map(|(_, life)| match life.standing() {
        Standing::Member(membership) => Some(membership),
        _ => None,
    });
    let (mut exempted, mut with_exclusions) = (0, 0);
    for membership in memberships {
        exempted += membership.exempted;
        with_exclusions += usize::from(exclusions(&membership.plan).is_some());
    }
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.exempted_connections.set(number(exempted));
    metrics.pods_with_exclusions.set(number(with_exclusions));
    let runtime = tokio::runtime::Handle::current().metrics();
    metrics.tasks.set(number(runtime.num_alive_tasks()));
}

/// Seconds since the last successful verification, of the pod for which it is longest.
fn verification_age(pods: &Pods) -> f64 {
    let ages = pods.iter().filter_map(|(_, life)| match &life.phase {
        Phase::Member(member) => Some(member.checks.verified_at.elapsed()),
        _ => None,
    });
    ages.max().unwrap_or_default().as_secs_f64()
}

/// Verifies a pod now, and answers with the result.
fn verify(admin: &Rc<Admin>, query: &str) -> Reply {
    // Names are DNS labels: only the slash may be escaped.
    let pod = query.split('&').find_map(|p| p.strip_prefix("pod="));
    let pod = pod.map(|pod| pod.replace("%2F", "/"));
    let Some((namespace, name)) = pod.as_deref().and_then(|pod| pod.split_once('/')) else {
        let usage = "missing query parameter: use /verify?pod=NAMESPACE/NAME\n";
        return text(StatusCode::BAD_REQUEST, usage).into();
    };
    let is_named = |life: &Life| {
        let PodRef {
            namespace: of,
            name: is,
            ..
        } = &life.sandbox.pod;
        of == namespace && is == name && matches!(life.standing(), Standing::Member(_))
    };
    let Some(id) = admin.pods.read().find(is_named).pop() else {
        return not_enrolled(namespace, name).into();
    };
    let (done, verified) = oneshot::channel();
    admin.inbox.send(Message::Verify(id, done));
    let (admin, namespace, name) = (admin.clone(), namespace.to_owned(), name.to_owned());
    Reply::later(async move {
        let _ = verified.await; // dropped when it is done
        // The pod may have left in the meantime.
        let pods = admin.pods.read();
        match pods.get(id).and_then(|life| admin.pod_status(life)) {
            Some(status) if status.state != PodState::Skipped => json(&status),
            _ => not_enrolled(&namespace, &name),
        }
    })
}

fn not_enrolled(namespace: &str, name: &str) -> HttpResponse {
    text(
        StatusCode::NOT_FOUND,
        format!("pod {namespace}/{name} is not enrolled on this node\n"),
    )
}

/// The node's clock, in milliseconds since the Unix epoch.
fn time_ms() -> Option<u64> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_millis()).ok())
}

impl Admin {
    fn scraped(&self) -> HttpResponse {
        update_gauges(&self.metrics, &self.pods.read());
        metrics(self.metrics.encode())
    }

    /// The status of a pod; `None` if it is not listed.
    fn pod_status(&self, life: &Life) -> Option<PodStatus> {
        let pod = &life.sandbox.pod;
        let member = |state, membership: &Membership| PodStatus {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: Some(membership.uid.clone()),
            state,
            reason: membership.reason.clone(),
            reason_code: self.reason_code(life, &membership.reason),
            ips: membership.plan.addresses.clone(),
            exempted_connections: membership.exempted,
            capabilities: self.capabilities(pod),
            started_outside: membership.started_outside,
            exclusions: exclusions(&membership.plan),
            verification: match &life.phase {
                Phase::Member(member) => member.checks.status(Instant::now()),
                _ => None,
            },
        };
        match life.standing() {
            Standing::Member(membership) => Some(member(PodState::Enrolled, membership)),
            Standing::Leaving(membership) => Some(member(PodState::Leaving, membership)),
            Standing::Outside(reason) => Some(PodStatus {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                state: PodState::Skipped,
                reason: reason.to_owned(),
                reason_code: self.reason_code(life, reason),
                ips: life.sandbox.addresses.clone(),
                exempted_connections: 0,
                capabilities: Vec::new(),
                started_outside: None,
                exclusions: None,
                verification: None,
            }),
            Standing::Hidden => None,
        }
    }

    /// The capabilities of a pod's containers, if the pod's specification is known.
    fn capabilities(&self, pod: &PodRef) -> Vec<ContainerCapabilities> {
        let cluster = self.readiness.source.cluster();
        cluster.map(|c| c.capabilities_of(pod)).unwrap_or_default()
    }

    /// The code of a reason that is the current decision's; any other, such as that of a failed
    /// join, has none.
    fn reason_code(&self, life: &Life, reason: &str) -> Option<EnrolmentReason> {
        let Sandbox { pod, addresses, .. } = &life.sandbox;
        let decision = self.readiness.source.decide(&self.node, pod, addresses);
        decision.code.filter(|_| decision.reason == reason)
    }

    fn status(&self) -> NodeStatus {
        let pods = self.pods.read();
        let Readiness {
            install,
            source,
            proxies,
            runtime_calls,
        } = &self.readiness;
        let (unready_code, unready) = self.readiness.missing().unzip();
        let unpresented = source.cluster().map(|c| c.unpresented(&pods));
        let mut listed: Vec<PodStatus> = pods
            .iter()
            .filter_map(|(_, l)| self.pod_status(l))
            .collect();
        listed.extend(unpresented.unwrap_or_default());
        listed.sort_by_key(|pod| pod.state == PodState::Skipped);
        NodeStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time_ms: time_ms(),
            unready,
            unready_code,
            plugin_missing: install.missing(),
            plugin_not_called: runtime_calls.status(),
            capture: self.capture.status(),
            proxies: proxies.status(),
            host_probes: self.host_probes.status(),
            pods: listed,
        }
    }
}
