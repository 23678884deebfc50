//! A proxy whose mesh and certificates come from a control plane: what it asks, what it makes of the answers, and what it
//! does when the control plane fails in one way or another.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use api::discovery::Resource;
use api::protobuf::Kind;
use underpass_tests::control_plane::resources::{deny, endpoint, garbage, pod, policy_resource, workload_resource};
use underpass_tests::control_plane::{CaFault, Scene, say};
use underpass_tests::sandbox::{await_within, connect, read_line, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

#[test]
fn two_pods_talk_as_a_control_plane_says() {
    let scene = Scene::new("xds-talk");
    scene.talk();
    let identities = [format!("src.identity=\"{CLIENT}\""), format!("dst.identity=\"{SERVER}\"")];
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        for hbone in ["dst.hbone_addr=10.78.0.2:8080", "dst.hbone_addr=[fd78::2]:8080"] {
            scene.log_with(&[direction, hbone, &identities[0], &identities[1]]);
        }
    }
    // What was asked, and by whom.
    let said = scene.plane.discovery.said();
    let first: Vec<_> = said.iter().filter(|s| s.request.response_nonce.is_empty()).collect();
    let types: Vec<_> = first.iter().map(|s| s.request.type_url.as_str()).collect();
    assert_eq!(types, [api::ADDRESS, api::AUTHORIZATION]);
    for request in first.iter().map(|s| &s.request) {
        let node = request.node.as_ref().unwrap();
        assert_eq!(node.id, "ztunnel~10.200.0.11~ztunnel-abcde.istio-system~istio-system.svc.cluster.local");
        let metadata = &node.metadata.as_ref().unwrap().fields;
        for (key, value) in [("NODE_NAME", "node"), ("NAME", "ztunnel-abcde"), ("DNS_CAPTURE", "false")] {
            assert_eq!(metadata[key], value.into(), "{key}");
        }
        assert!(request.subscribe.is_empty() && request.initial_resource_versions.is_empty());
    }
    let nonces: Vec<_> = said.iter().filter(|s| !s.request.response_nonce.is_empty()).collect();
    assert!(nonces.len() >= 2 && nonces.iter().all(|s| s.request.error_detail.is_none()), "all is acknowledged");
    let head = &scene.plane.discovery.heads()[0];
    assert_eq!((head.authorization.as_str(), head.cluster.as_str()), ("Bearer the-first-token", "Kubernetes"));
    let asked = scene.plane.certificates.asked();
    let keys: Vec<_> = asked.iter().zip([CLIENT, SERVER]).map(|((_, r), id)| assert_requests(&r.csr, id)).collect();
    assert_ne!(keys[0], keys[1], "a fresh key for each");
    let (head, request) = asked[0].clone();
    assert_eq!((head.authorization.as_str(), head.cluster.as_str()), ("Bearer the-first-token", "Kubernetes"));
    assert_eq!(request.validity_duration, 24 * 3600);
    assert_eq!(request.metadata.unwrap().fields["ImpersonatedIdentity"].kind, Some(Kind::Text(CLIENT.to_owned())));
    assert_eq!(scene.plane.certificates.identities(), [CLIENT, SERVER], "one for each, as they joined");
    scene.line_with(&["in step with https://127.0.0.1:15012: 3 addresses, 0 policies"]);
    let metrics = scene.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
    assert!(
        metrics.contains("istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"}"),
        "{metrics}"
    );
    assert!(metrics.contains("underpass_state_age_seconds 0"), "{metrics}");
}

/// A request for a certificate is for a P-256 key, without a subject, and with one name, which is critical. Returns the key.
fn assert_requests(csr: &str, identity: &str) -> Vec<u8> {
    let (_, block) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).unwrap();
    let (_, request) = X509CertificationRequest::from_der(&block.contents).unwrap();
    let info = &request.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0);
    let key = &info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().unwrap().as_oid().unwrap();
    let (ec_public_key, p_256) = ("1.2.840.10045.2.1", "1.2.840.10045.3.1.7");
    assert_eq!(
        (key.algorithm.algorithm.to_id_string().as_str(), curve.to_id_string().as_str()),
        (ec_public_key, p_256)
    );
    let mut names = Vec::new();
    for attribute in info.attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { continue };
        for extension in &asked.extensions {
            if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
                names.extend(san.general_names.iter().map(|name| (extension.critical, name.clone())));
            }
        }
    }
    assert_eq!(names, [(true, GeneralName::URI(identity))]);
    key.subject_public_key.data.to_vec()
}

#[test]
fn no_pod_is_served_before_everything_was_said_once() {
    let mut scene = Scene::unready("xds-ready");
    scene.know_pods();
    scene.plane.discovery.silence(api::AUTHORIZATION, true);
    scene.start_proxy(&[]);
    let waiting = "not ready, pending: state manager, workload proxy manager\n";
    until("it is not ready", || scene.readiness().ok().filter(|(s, body)| *s == 500 && body == waiting));
    scene.line_with(&["which has said nothing of Authorization", "there is no state yet, so no pod is served"]);
    let output = scene.try_enrol("client");
    assert!(!output.status.success(), "a pod that must not run in the open has started");
    scene.plane.discovery.silence(api::AUTHORIZATION, false);
    scene.plane.cut();
    scene.ready();
    scene.enrol("client");
    scene.enrol("server");
    scene.talk();
}

#[test]
fn workloads_and_policies_come_and_go() {
    let scene = Scene::new("xds-change");
    let mut open = scene.try_talk(Scene::destinations()[0]).unwrap();
    let principal = "cluster.local/ns/default/sa/client";
    scene.plane.discovery.set(api::AUTHORIZATION, [policy_resource(deny("no-client", principal))]);
    scene.refused(Scene::destinations()[0]);
    assert!(say(&mut open).is_err(), "an open connection is cut, too");
    // The one that was refused may have been open for a moment before.
    assert!(scene.try_talk(Scene::destinations()[0]).is_err());
    scene.log_with(&["UP-PROXY-010", "default/no-client"]);
    scene.plane.discovery.remove(api::AUTHORIZATION, &["default/no-client"]);
    until("it is allowed again", || scene.try_talk(Scene::destinations()[0]).ok());
    // The server is said to have moved: the service leads nowhere.
    scene.plane.discovery.remove(api::ADDRESS, &["Kubernetes//Pod/default/server"]);
    until("the service has no endpoint", || scene.try_talk(Scene::destinations()[2]).is_err().then_some(()));
    scene.plane.discovery.set(api::ADDRESS, [workload_resource(endpoint(pod("server", &[PEER4, PEER6])))]);
    until("it has one again", || scene.try_talk(Scene::destinations()[2]).ok());
    scene.talk();
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_rest_is_in_force() {
    let scene = Scene::new("xds-nack");
    let mut legacy = pod("legacy", &["10.78.0.9".parse().unwrap()]);
    legacy.tunnel_protocol = 2;
    let mut short = pod("short", &[]);
    short.addresses = vec![vec![1, 2, 3].into()];
    let named = Resource { name: "another".to_owned(), ..workload_resource(pod("misnamed", &[])) };
    let good = pod("good", &["10.78.0.8".parse().unwrap()]);
    let all = [
        workload_resource(legacy.clone()),
        workload_resource(short),
        named,
        garbage(api::ADDRESS, "garbage"),
        garbage(api::AUTHORIZATION, "disguised"),
        workload_resource(good),
    ];
    scene.plane.discovery.set(api::ADDRESS, all);
    let why = until("it is refused", || scene.plane.discovery.refusals().pop());
    for part in [
        "Kubernetes//Pod/default/legacy: tunnel_protocol: 2 is not known here",
        "Kubernetes//Pod/default/short: addresses: an address of 3 bytes",
        "another: it calls itself Kubernetes//Pod/default/misnamed",
        "garbage: it cannot be decoded",
        "disguised: it is a type.googleapis.com/istio.security.Authorization",
    ] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    scene.line_with(&["in step with", "4 addresses", "UP-CONTROL-004: 5 not taken, such as "]);
    scene.log_with(&["UP-CONTROL-004", "Kubernetes//Pod/default/legacy was not taken"]);
    let dump = scene.node.get("127.0.0.1:15000", "/config_dump").unwrap().1;
    assert!(dump.contains("Kubernetes//Pod/default/good") && !dump.contains("Kubernetes//Pod/default/legacy"));
    scene.talk();
    // A version that is refused leaves the one before in force, and is not said to be had.
    let mut worse = endpoint(pod("server", &[PEER4, PEER6]));
    worse.tunnel_protocol = 2;
    scene.plane.discovery.set(api::ADDRESS, [workload_resource(worse)]);
    until("it is refused", || (scene.plane.discovery.refusals().len() > 1).then_some(()));
    scene.talk();
    let good: Vec<_> = ["legacy", "short"].map(|n| workload_resource(pod(n, &[]))).into();
    scene.plane.discovery.set(api::ADDRESS, good);
    until("they are forgiven", || (!scene.line().contains("legacy")).then_some(()));
}

#[test]
fn a_new_stream_says_what_is_there_and_brings_what_has_changed() {
    let scene = Scene::new("xds-reconnect");
    scene.talk();
    std::fs::write(scene.node.file("token"), "the-second-token").unwrap();
    scene.plane.away(true);
    scene.line_with(&["no connection to", "UP-CONTROL-00", "ago is in force: 3 addresses, 0 policies"]);
    scene.talk();
    scene.plane.discovery.remove(api::ADDRESS, &["default/server.default.svc.cluster.local"]);
    scene.plane.away(false);
    scene.line_with(&["in step with", "2 addresses"]);
    let said = scene.plane.discovery.said();
    let last = said.iter().rfind(|s| s.request.node.is_some() && s.request.type_url == api::ADDRESS).unwrap();
    let names: Vec<_> = last.request.initial_resource_versions.keys().map(String::as_str).collect();
    let expected = [
        "Kubernetes//Pod/default/client",
        "Kubernetes//Pod/default/server",
        "default/server.default.svc.cluster.local",
    ];
    assert_eq!(names, expected);
    assert_eq!(scene.plane.discovery.heads().last().unwrap().authorization, "Bearer the-second-token");
    let dump = scene.node.get("127.0.0.1:15000", "/config_dump").unwrap().1;
    assert!(!dump.contains("server.default.svc.cluster.local\","), "what is gone was told");
}

#[test]
fn the_root_of_the_control_plane_may_change() {
    let scene = Scene::new("xds-root");
    scene.talk();
    scene.plane.change_root();
    scene.line_with(&["no connection to", "UP-CONTROL-002", "UnknownIssuer"]);
    scene.talk();
    scene.plane.write_root();
    scene.line_with(&["in step with"]);
    // The authority is behind the same server: a pod that comes now has its certificate, too.
    scene.remove("client");
    scene.enrol("client");
    scene.talk();
}

#[test]
fn a_certificate_that_is_not_what_was_asked_for_is_not_used() {
    let scene = Scene::new("ca-faults");
    let cases = [
        (
            CaFault::WrongIdentity("spiffe://cluster.local/ns/default/sa/server"),
            "UP-CONTROL-007",
            "it is for spiffe://",
        ),
        (CaFault::WrongKey, "UP-CONTROL-007", "it is for another key"),
        (CaFault::Expired, "UP-CONTROL-007", "it has expired"),
        (CaFault::ForeignRoot, "UP-CONTROL-007", "it does not lead to the roots that came with it"),
        (CaFault::NoRoot, "UP-CONTROL-007", "there is no certificate besides the root"),
        (CaFault::Garbage, "UP-CONTROL-007", ""),
        (CaFault::NoMessage, "UP-CONTROL-006", ""),
        (CaFault::Refuse(16, "request impersonation authentication failure"), "UP-CONTROL-006", "impersonation"),
    ];
    for (fault, code, why) in cases {
        scene.plane.certificates.misbehave(Some(fault.clone()));
        scene.remove("client");
        scene.enrol("client");
        let trouble = until(&format!("{fault:?} is told"), || {
            let status = scene.status();
            let certificates = status["certificates"].as_array().unwrap().clone();
            let client = certificates.iter().find(|c| c["identity"] == CLIENT)?.clone();
            assert_ne!(client["state"], "Available", "{fault:?}");
            client["trouble"].as_str().map(str::to_owned)
        });
        assert!(trouble.contains(code) && trouble.contains(why), "{fault:?}: {trouble}");
        assert!(scene.try_talk(Scene::destinations()[0]).is_err(), "{fault:?}");
        scene.plane.certificates.misbehave(None);
        until("a later answer is good", || scene.try_talk(Scene::destinations()[0]).ok());
    }
    scene.log_with(&["UP-CONTROL-008", "there is no certificate of spiffe://cluster.local/ns/default/sa/client yet"]);
    scene.talk();
}

#[test]
fn a_certificate_that_is_refused_is_asked_for_later_and_later() {
    let scene = Scene::new("ca-retry");
    scene.plane.certificates.misbehave(Some(CaFault::Refuse(14, "not now")));
    scene.remove("client");
    let before = scene.plane.certificates.times(CLIENT).len();
    scene.enrol("client");
    let times = await_within(60, "five are asked for", || {
        let times = scene.plane.certificates.times(CLIENT).split_off(before);
        (times.len() >= 5).then_some(times)
    });
    let waits: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
    for (wait, expected) in waits.iter().zip([500, 1000, 2000, 4000]) {
        assert!(*wait >= Duration::from_millis(expected).mul_f64(0.8), "{waits:?}");
    }
    scene.plane.certificates.misbehave(None);
    await_within(30, "a later answer is good", || scene.try_talk(Scene::destinations()[0]).ok());
}

#[test]
fn an_authority_that_is_silent_or_away_costs_only_pods_that_come() {
    let scene = Scene::new("ca-silent");
    scene.talk();
    scene.plane.certificates.misbehave(Some(CaFault::Silent));
    scene.talk();
    scene.remove("client");
    scene.enrol("client"); // it joins at once, for nothing waits for the certificate but its connections
    assert!(scene.try_talk(Scene::destinations()[0]).is_err());
    scene.log_with(&["UP-CONTROL-006", "no answer within 10 s"]);
    scene.plane.certificates.misbehave(None);
    until("a later answer is good", || scene.try_talk(Scene::destinations()[0]).ok());
}

#[test]
fn certificates_are_renewed_at_half_of_their_life_and_forgotten_with_the_last_pod() {
    let scene = Scene::new("ca-renew");
    let certificates = &scene.plane.certificates;
    let asked = |who: &str| certificates.identities().iter().filter(|i| *i == who).count();
    assert_eq!((asked(CLIENT), asked(SERVER)), (1, 1));
    scene.remove("client");
    until("it is forgotten", || (scene.status()["certificates"].as_array().unwrap().len() == 1).then_some(()));
    certificates.set_validity(Duration::from_secs(4));
    scene.enrol("client");
    let began = Instant::now();
    until("it is renewed", || (asked(CLIENT) >= 3).then_some(()));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900), "renewed after {took:?}"); // certificates know whole seconds
    scene.try_talk(Scene::destinations()[0]).unwrap();
    // While it is valid it is used, whatever the authority says; then it is not.
    certificates.misbehave(Some(CaFault::Refuse(14, "no")));
    scene.try_talk(Scene::destinations()[0]).unwrap();
    until("it has expired", || {
        let certificates = scene.status()["certificates"].as_array().unwrap().clone();
        certificates.iter().any(|c| c["identity"] == CLIENT && c["state"] == "Expired").then_some(())
    });
    // The tunnel that is open goes on; another one is not opened.
    scene.refused(Scene::destinations()[1]);
    scene.log_with(&["UP-CONTROL-008", "the certificate of spiffe://cluster.local/ns/default/sa/client has expired"]);
    certificates.misbehave(None);
    until("a later answer is good", || scene.try_talk(Scene::destinations()[1]).ok());
    assert_eq!(asked(SERVER), 1, "the others are not asked for");
}

#[test]
fn a_root_of_the_mesh_is_rotated_while_connections_go_on() {
    let scene = Scene::new("ca-rotate");
    let mut open = scene.try_talk(Scene::destinations()[0]).unwrap();
    let certificates = &scene.plane.certificates;
    certificates.rotate();
    scene.remove("client");
    scene.enrol("client");
    // The new pod has a certificate of the new root. The server has one of the old root, and is given another at once.
    scene.talk();
    until("all are renewed", || (certificates.identities().iter().filter(|i| *i == SERVER).count() == 2).then_some(()));
    scene.talk();
    drop(say(&mut open)); // its pod has left
    scene.log_with(&["the roots of the mesh have changed"]);
}

#[test]
fn workloads_are_asked_for_on_demand() {
    let scene = Scene::with("xds-on-demand", &[("XDS_ON_DEMAND", "true")]);
    let said = scene.plane.discovery.said();
    assert_eq!([&said[0].request.subscribe, &said[0].request.unsubscribe], [&["*".to_owned()], &["*".to_owned()]]);
    scene.talk();
    let asked: Vec<String> =
        scene.plane.discovery.said().into_iter().flat_map(|s| s.request.subscribe).filter(|n| n != "*").collect();
    // Their other addresses came with them.
    assert_eq!(asked, ["/10.78.0.2", "/10.96.0.10"]);
}

#[test]
fn all_that_ask_for_one_address_are_answered_by_one_request() {
    let scene = Scene::with("xds-together", &[("XDS_ON_DEMAND", "true")]);
    scene.plane.discovery.delay(Duration::from_millis(500));
    std::thread::scope(|scope| {
        let talk = || scope.spawn(|| scene.try_talk(Scene::destinations()[0]).map(drop));
        let talking: Vec<_> = (0..8).map(|_| talk()).collect();
        talking.into_iter().for_each(|t| t.join().unwrap().unwrap());
    });
    let said = scene.plane.discovery.said();
    let asked = said.iter().flat_map(|s| &s.request.subscribe).filter(|n| *n == "/10.78.0.2").count();
    assert_eq!(asked, 1);
}

#[test]
fn a_pod_that_nobody_has_named_yet_is_waited_for() {
    let scene = Scene::new("xds-unnamed");
    let name = "Kubernetes//Pod/default/server";
    for (ip, own) in [(PEER4, POD4), (PEER6, POD6)] {
        let before = scene.line();
        scene.plane.discovery.remove(api::ADDRESS, &[name]);
        until("it is gone", || (scene.line() != before).then_some(()));
        // Which policies apply to it is not known: whoever connects waits, in vain or not.
        let mut early = connect(&scene.wire.pod, (ip, 8080).into()).unwrap();
        assert!(read_line(&mut early).is_err(), "it was served though nobody knew its policies");
        scene.log_with(&["the control plane has said nothing of this pod for 5 s", &ip.to_string()]);
        let mut early = connect(&scene.wire.pod, (ip, 8080).into()).unwrap();
        scene.know_pods();
        assert_eq!(read_line(&mut early).unwrap(), own.to_string());
    }
}
