//! Each check of a cluster, on snapshots.

use agent_status::{
    CaptureStatus, HostProbesStatus, NodeStatus, VerificationState, VerificationStatus,
};
use serde_json::json;

use super::*;
use crate::cluster::NodeSnapshot;

fn outcome(run: impl Fn(&mut CheckReport), check: checks::Check) -> (&'static str, String) {
    let mut report = CheckReport::default();
    run(&mut report);
    match report.of(check) {
        Some(CheckOutcome::Good(found)) => ("good", found.clone()),
        Some(CheckOutcome::Warning(found)) => ("warning", found.join("\n")),
        Some(CheckOutcome::Failed(found)) => ("failed", found.join("\n")),
        Some(CheckOutcome::Unknown(reason)) => ("unknown", reason.clone()),
        None => ("not run", String::new()),
    }
}

fn daemon_set(name: &str, command: &str, desired: u64, ready: u64) -> DaemonSet {
    let replicas = ReplicaStatus {
        namespace: "n".to_owned(),
        name: name.to_owned(),
        desired,
        ready,
    };
    DaemonSet {
        replicas,
        updated: desired,
        commands: vec![command.to_owned()],
        env: BTreeMap::new(),
    }
}

#[test]
fn an_installation_needs_two_daemon_sets_and_no_others() {
    let mut snapshot = ClusterSnapshot::default();
    let of = |snapshot: &ClusterSnapshot, check| {
        outcome(
            |r| (installation(r, snapshot), other_redirection(r, snapshot)).0,
            check,
        )
    };
    assert_eq!(of(&snapshot, checks::INSTALLED).0, "failed");
    snapshot.daemon_sets = vec![
        daemon_set("underpass-cni-node", "/bin/underpass-agent", 2, 2),
        daemon_set("ztunnel", "/bin/underpass-proxy", 2, 1),
    ];
    assert_eq!(
        of(&snapshot, checks::INSTALLED),
        ("good", "namespace n".to_owned())
    );
    assert_eq!(of(&snapshot, checks::AGENTS_READY).0, "good");
    let partly = "n/ztunnel: 1 of 2 ready, 2 of 2 up to date".to_owned();
    assert_eq!(of(&snapshot, checks::PROXIES_READY), ("failed", partly));
    assert_eq!(of(&snapshot, checks::NOTHING_ELSE).0, "good");
    snapshot
        .daemon_sets
        .push(daemon_set("ztunnel", "/usr/local/bin/ztunnel", 1, 1));
    assert_eq!(
        of(&snapshot, checks::NOTHING_ELSE),
        ("failed", "DaemonSet n/ztunnel".to_owned())
    );
}

#[test]
fn istiod_must_enable_ambient_and_trust_the_proxies() {
    let mut snapshot = ClusterSnapshot::default();
    let of = |snapshot: &ClusterSnapshot, check| outcome(|r| istiod(r, snapshot, "mesh"), check);
    assert_eq!(
        of(&snapshot, checks::ISTIOD_RUNNING).0,
        "unknown",
        "istiod may run outside the cluster"
    );
    let env = [
        ("PILOT_ENABLE_AMBIENT", "true"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "a/b, mesh/ztunnel"),
    ];
    let env: BTreeMap<String, String> = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let (namespace, name) = ("i".to_owned(), "istiod".to_owned());
    let replicas = ReplicaStatus {
        namespace,
        name,
        desired: 1,
        ready: 1,
    };
    let good = Istiod {
        replicas,
        image: "pilot:1".to_owned(),
        env,
    };
    snapshot.istiods = Ok(vec![good.clone()]);
    assert_eq!(
        of(&snapshot, checks::ISTIOD_RUNNING),
        ("good", "pilot:1".to_owned())
    );
    assert_eq!(
        (
            of(&snapshot, checks::ISTIOD_AMBIENT).0,
            of(&snapshot, checks::ISTIOD_TRUSTS).0
        ),
        ("good", "good")
    );
    snapshot.istiods = Ok(vec![Istiod {
        env: BTreeMap::new(),
        ..good
    }]);
    let unset = "i/istiod: PILOT_ENABLE_AMBIENT is not set".to_owned();
    assert_eq!(of(&snapshot, checks::ISTIOD_AMBIENT), ("failed", unset));
    assert_eq!(of(&snapshot, checks::ISTIOD_TRUSTS).0, "failed");
    snapshot.istiods = Err("forbidden".to_owned());
    assert_eq!(
        of(&snapshot, checks::ISTIOD_RUNNING),
        ("unknown", "forbidden".to_owned())
    );
}

#[test]
fn sidecars_that_wait_for_istios_plugin_are_reported() {
    let of =
        |snapshot: &ClusterSnapshot| outcome(|r| sidecars(r, snapshot), checks::SIDECARS_START);
    let pod = json!({
        "metadata": {
            "namespace": "shop",
            "name": "side",
            "uid": "1",
            "annotations": { "sidecar.istio.io/status": "{}" },
        },
        "spec": {},
        "status": { "phase": "Pending" },
    });
    let labels = |name: &str, value: &str| BTreeMap::from([(name.into(), value.into())]);
    let mut snapshot = ClusterSnapshot {
        sidecars_await_plugin: Ok(true),
        ..ClusterSnapshot::default()
    };
    let ambient = labels("istio.io/dataplane-mode", "ambient");
    snapshot.namespaces.insert("mesh".to_owned(), ambient);
    assert_eq!(of(&snapshot).0, "good", "no sidecars");
    snapshot.pods = vec![serde_json::from_value(pod).unwrap()];
    let pending = "shop/side is Pending with a sidecar".to_owned();
    assert_eq!(of(&snapshot), ("warning", pending));
    snapshot.pods.clear();
    let injected = labels("istio-injection", "enabled");
    snapshot.namespaces.insert("shop".to_owned(), injected);
    let requested = "namespace shop requests sidecars".to_owned();
    assert_eq!(of(&snapshot), ("warning", requested));
    snapshot.sidecars_await_plugin = Ok(false);
    assert_eq!(of(&snapshot).0, "good", "istio-init redirects");
    snapshot.sidecars_await_plugin = Err("forbidden".to_owned());
    assert_eq!(of(&snapshot), ("unknown", "forbidden".to_owned()));
}

#[test]
fn unavailable_data_is_unknown_and_not_a_failure() {
    let mut snapshot = ClusterSnapshot::default();
    let of = |snapshot: &ClusterSnapshot, check| {
        let run = |r: &mut CheckReport| {
            istiod(r, snapshot, "n");
            roots(r, snapshot);
        };
        outcome(run, check)
    };
    let (state, reason) = of(&snapshot, checks::ISTIOD_RUNNING);
    assert!(state == "unknown" && reason.contains("outside this cluster"));
    assert_eq!(of(&snapshot, checks::ISTIOD_AMBIENT).0, "not run");
    let reason = "ConfigMap istio-ca-root-cert not found".to_owned();
    assert_eq!(of(&snapshot, checks::ROOT_VALID), ("unknown", reason));
    snapshot.roots = Err("forbidden".to_owned());
    let forbidden = ("unknown", "forbidden".to_owned());
    assert_eq!(of(&snapshot, checks::ROOT_VALID), forbidden);
    let replicas = ReplicaStatus {
        namespace: "i".to_owned(),
        name: "istiod".to_owned(),
        desired: 2,
        ready: 0,
    };
    snapshot.istiods = Ok(vec![Istiod {
        replicas,
        image: "pilot:1".to_owned(),
        env: BTreeMap::new(),
    }]);
    let down = ("failed", "i/istiod: 0 of 2 ready".to_owned());
    assert_eq!(of(&snapshot, checks::ISTIOD_RUNNING), down);
}

#[test]
fn expiring_roots_cause_a_warning() {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2027, 1, 1);
    let pem = parameters
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    let end = rcgen::date_time_ymd(2027, 1, 1).unix_timestamp();
    assert_eq!(
        check_validity(&pem, end - 61 * 86_400),
        CheckOutcome::Good("61 days".to_owned())
    );
    assert!(matches!(
        check_validity(&pem, end - 59 * 86_400),
        CheckOutcome::Warning(_)
    ));
    assert!(matches!(check_validity(&pem, end), CheckOutcome::Failed(_)));
    for nonsense in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(
            matches!(check_validity(nonsense, 0), CheckOutcome::Failed(_)),
            "{nonsense}"
        );
    }
}

#[test]
fn enablement_selectors_replace_the_label() {
    let pod = json!({ "metadata": { "namespace": "shop", "labels": { "mesh": "on" } } });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let label = ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
    let mut snapshot = ClusterSnapshot {
        namespaces: [("shop".to_owned(), [label].into())].into(),
        ..ClusterSnapshot::default()
    };
    assert!(is_selected(&snapshot, &pod));
    for (value, expected) in [("on", true), ("off", false)] {
        let selectors = format!("[{{ podSelector: {{ matchLabels: {{ mesh: {value} }} }} }}]");
        snapshot.selectors = Some(selectors.parse().unwrap());
        assert_eq!(is_selected(&snapshot, &pod), expected, "{value}");
    }
}

#[test]
fn declared_ports_of_protocols_that_are_not_captured_are_reported() {
    let pod = |ports: serde_json::Value| {
        let containers = json!([{ "name": "a" }, { "name": "b", "ports": ports }]);
        let pod = json!({ "metadata": {}, "spec": { "containers": containers } });
        uncaptured_ports(&serde_json::from_value(pod).unwrap())
    };
    let tcp = json!({ "containerPort": 80 });
    let [udp, sctp] =
        ["UDP", "SCTP"].map(|protocol| json!({ "containerPort": 53, "protocol": protocol }));
    assert_eq!(pod(json!([tcp])), None);
    let expected = Some("53/UDP, 53/SCTP".to_owned());
    assert_eq!(pod(json!([udp, tcp, sctp])), expected);
}

#[test]
fn enrolled_pods_match_labels_and_annotations() {
    let status = |name: &str, state, verified| PodStatus {
        namespace: "n".to_owned(),
        name: name.to_owned(),
        uid: None,
        state,
        reason: "a proxy".to_owned(),
        reason_code: None,
        ips: Vec::new(),
        exempted_connections: 0,
        capabilities: Vec::new(),
        started_outside: None,
        exclusions: None,
        verification: Some(VerificationStatus {
            state: verified,
            reason: None,
            reason_code: None,
            for_ms: 0,
            last_repair: None,
            from_node: None,
        }),
    };
    let check_pod = |name: &str, node: &str, annotated: bool, status: Option<PodStatus>| {
        let annotations = if annotated {
            json!({ REDIRECTION: "enabled" })
        } else {
            json!({})
        };
        let pod = json!({
            "metadata": { "namespace": "n", "name": name, "annotations": annotations },
            "spec": { "nodeName": node },
            "status": { "phase": "Running" },
        });
        let agent = NodeStatus {
            node: "a".to_owned(),
            version: String::new(),
            time_ms: None,
            unready: None,
            unready_code: None,
            plugin_missing: None,
            plugin_not_called: None,
            capture: CaptureStatus {
                kind: String::new(),
                why: String::new(),
            },
            proxies: Vec::new(),
            host_probes: HostProbesStatus {
                state: String::new(),
                addresses: 0,
                reason: None,
            },
            pods: status.into_iter().collect(),
        };
        let node = |name: &str, agent| NodeSnapshot {
            name: name.to_owned(),
            agent,
            ..NodeSnapshot::default()
        };
        let labels = BTreeMap::from([("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())]);
        let snapshot = ClusterSnapshot {
            pods: vec![serde_json::from_value(pod).unwrap()],
            namespaces: BTreeMap::from([("n".to_owned(), labels)]),
            nodes: vec![
                node("a", Some(Ok(agent))),
                node("b", None),
                node("c", Some(Err(String::new()))),
            ],
            ..ClusterSnapshot::default()
        };
        [checks::PODS_JOINED, checks::PODS_ANNOUNCED]
            .map(|check| outcome(|r| pods(r, &snapshot), check))
    };
    let good = |text: &str| ("good", text.to_owned());
    let bad = |text: &str| ("failed", text.to_owned());
    let (enrolled, skipped) = (PodState::Enrolled, PodState::Skipped);
    let (verified, drifted) = (VerificationState::Verified, VerificationState::Drifted);
    assert_eq!(
        check_pod("p", "a", true, Some(status("p", enrolled, verified))),
        [good("1 pods"), good("")]
    );
    let lacking = bad("a: n/p is enrolled but lacks the annotation");
    assert_eq!(
        check_pod("p", "a", false, Some(status("p", enrolled, verified))),
        [good("1 pods"), lacking]
    );
    assert_eq!(
        check_pod("p", "a", true, Some(status("p", enrolled, drifted))),
        [good("1 pods"), good("")]
    );
    let warning = ("warning", "a: n/p not enrolled: a proxy".to_owned());
    assert_eq!(
        check_pod("p", "a", false, Some(status("p", skipped, verified))),
        [warning, good("")]
    );
    let [unknown, mismatched] = check_pod("p", "a", true, None);
    assert_eq!(unknown, bad("a: n/p: unknown to the agent"));
    assert_eq!(
        mismatched,
        bad("a: n/p has the annotation but is not enrolled")
    );
    assert_eq!(
        check_pod("p", "b", false, None)[0],
        bad("b: n/p: no agent on the node")
    );
    assert_eq!(
        check_pod("p", "c", false, None)[0],
        bad("c: n/p: the agent does not respond")
    );
}
