//! A proxy whose mesh and certificates come from a control plane: its requests, the effect of the
//! responses, and its behaviour when the control plane fails.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use api::discovery::Resource;
use api::protobuf::Kind;
use serde_json::Value;
use underpass_tests::control_plane::resources::{
    deny, endpoint, garbage, pod, policy_resource, workload_resource,
};
use underpass_tests::control_plane::{CaFault, ControlPlaneSetup, echo};
use underpass_tests::sandbox::{connect, read_line, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

#[test]
fn pods_communicate_with_state_from_a_control_plane() {
    let setup = ControlPlaneSetup::new("xds-talk");
    setup.exchange_with_all();
    let identities = [
        format!("src.identity=\"{CLIENT}\""),
        format!("dst.identity=\"{SERVER}\""),
    ];
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        for hbone in [
            "dst.hbone_addr=10.78.0.2:8080",
            "dst.hbone_addr=[fd78::2]:8080",
        ] {
            setup.log_with(&[direction, hbone, &identities[0], &identities[1]]);
        }
    }
    // The requests and their metadata.
    let requests = setup.plane.discovery.requests();
    let first: Vec<_> = requests
        .iter()
        .filter(|s| s.request.response_nonce.is_empty())
        .collect();
    let types: Vec<_> = first.iter().map(|s| s.request.type_url.as_str()).collect();
    assert_eq!(types, [api::ADDRESS, api::AUTHORIZATION]);
    for request in first.iter().map(|s| &s.request) {
        let node = request.node.as_ref().unwrap();
        assert_eq!(
            node.id,
            "ztunnel~10.200.0.11~ztunnel-abcde.istio-system~istio-system.svc.cluster.local"
        );
        let metadata = &node.metadata.as_ref().unwrap().fields;
        for (key, value) in [
            ("NODE_NAME", "node"),
            ("NAME", "ztunnel-abcde"),
            ("DNS_CAPTURE", "false"),
        ] {
            assert_eq!(metadata[key], value.into(), "{key}");
        }
        assert!(request.subscribe.is_empty() && request.initial_resource_versions.is_empty());
    }
    let nonces: Vec<_> = requests
        .iter()
        .filter(|s| !s.request.response_nonce.is_empty())
        .collect();
    assert!(
        nonces.len() >= 2 && nonces.iter().all(|s| s.request.error_detail.is_none()),
        "not everything is acknowledged"
    );
    let head = &setup.plane.discovery.heads()[0];
    assert_eq!(
        (head.authorization.as_str(), head.cluster.as_str()),
        ("Bearer the-first-token", "Kubernetes")
    );
    let csrs = setup.plane.certificates.requests();
    let keys: Vec<_> = csrs
        .iter()
        .zip([CLIENT, SERVER])
        .map(|((_, r), id)| assert_requests(&r.csr, id))
        .collect();
    assert_ne!(keys[0], keys[1], "each identity has its own key");
    let (head, request) = csrs[0].clone();
    assert_eq!(
        (head.authorization.as_str(), head.cluster.as_str()),
        ("Bearer the-first-token", "Kubernetes")
    );
    assert_eq!(request.validity_duration, 24 * 3600);
    assert_eq!(
        request.metadata.unwrap().fields["ImpersonatedIdentity"].kind,
        Some(Kind::Text(CLIENT.to_owned()))
    );
    assert_eq!(
        setup.plane.certificates.identities(),
        [CLIENT, SERVER],
        "one request per identity, in the order of joining"
    );
    let plane = setup.await_addresses(3);
    assert_eq!(
        (&plane["address"], &plane["policies"]),
        (&"https://127.0.0.1:15012".into(), &0.into())
    );
    let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
    assert!(
        metrics.contains(
            "istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"}"
        ),
        "{metrics}"
    );
    assert!(
        metrics.contains("underpass_state_age_seconds 0"),
        "{metrics}"
    );
}

/// Asserts that a CSR has a P-256 key, no subject and one name, which is critical. Returns the key.
fn assert_requests(csr: &str, identity: &str) -> Vec<u8> {
    let (_, block) = x509_parser::pem::parse_x509_pem(csr.as_bytes()).unwrap();
    let (_, request) = X509CertificationRequest::from_der(&block.contents).unwrap();
    let info = &request.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0);
    let key = &info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().unwrap().as_oid().unwrap();
    let (ec_public_key, p_256) = ("1.2.840.10045.2.1", "1.2.840.10045.3.1.7");
    assert_eq!(
        (
            key.algorithm.algorithm.to_id_string().as_str(),
            curve.to_id_string().as_str()
        ),
        (ec_public_key, p_256)
    );
    let mut names = Vec::new();
    for attribute in info.attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            continue;
        };
        for extension in &requested.extensions {
            if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
                names.extend(
                    san.general_names
                        .iter()
                        .map(|name| (extension.critical, name.clone())),
                );
            }
        }
    }
    assert_eq!(names, [(true, GeneralName::URI(identity))]);
    key.subject_public_key.data.to_vec()
}

#[test]
fn no_pod_is_served_before_all_types_were_received() {
    let mut setup = ControlPlaneSetup::without_pods("xds-ready");
    setup.publish_pods();
    setup.plane.discovery.silence(api::AUTHORIZATION, true);
    setup.start_proxy(&[]);
    let waiting = "not ready, pending: state manager, workload proxy manager\n";
    until("it is not ready", || {
        setup
            .readiness()
            .ok()
            .filter(|(s, body)| *s == 500 && body == waiting)
    });
    let plane = setup.await_awaited(&["authorization"]);
    assert_eq!(
        (&plane["synced"], &plane["stateAgeS"]),
        (&false.into(), &Value::Null)
    );
    let output = setup.try_enrol("client");
    assert!(
        !output.status.success(),
        "a pod of the mesh started without a served proxy"
    );
    setup.plane.discovery.silence(api::AUTHORIZATION, false);
    setup.plane.drop_connections();
    setup.await_ready();
    setup.enrol("client");
    setup.enrol("server");
    setup.exchange_with_all();
}

#[test]
fn added_and_removed_workloads_and_policies_take_effect() {
    let setup = ControlPlaneSetup::new("xds-change");
    let mut open = setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap();
    let principal = "cluster.local/ns/default/sa/client";
    setup.plane.discovery.set(
        api::AUTHORIZATION,
        [policy_resource(deny("no-client", principal))],
    );
    setup.await_refused(ControlPlaneSetup::destinations()[0]);
    assert!(
        echo(&mut open).is_err(),
        "an open connection is still served"
    );
    // The refused connection may have been open for a moment.
    assert!(
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .is_err()
    );
    setup.log_with(&["UP-PROXY-010", "default/no-client"]);
    setup
        .plane
        .discovery
        .remove(api::AUTHORIZATION, &["default/no-client"]);
    until("it is allowed again", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .ok()
    });
    // The server is removed: the service has no endpoint.
    setup
        .plane
        .discovery
        .remove(api::ADDRESS, &["Kubernetes//Pod/default/server"]);
    until("the service has no endpoint", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[2])
            .is_err()
            .then_some(())
    });
    setup.plane.discovery.set(
        api::ADDRESS,
        [workload_resource(endpoint(pod("server", &[PEER4, PEER6])))],
    );
    until("it has one again", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[2])
            .ok()
    });
    setup.exchange_with_all();
}

#[test]
fn a_bad_resource_is_rejected_by_name_and_the_others_apply() {
    let setup = ControlPlaneSetup::new("xds-nack");
    let mut legacy = pod("legacy", &["10.78.0.9".parse().unwrap()]);
    legacy.tunnel_protocol = 2;
    let mut short = pod("short", &[]);
    short.addresses = vec![vec![1, 2, 3].into()];
    let named = Resource {
        name: "another".to_owned(),
        ..workload_resource(pod("misnamed", &[]))
    };
    let good = pod("good", &["10.78.0.8".parse().unwrap()]);
    let all = [
        workload_resource(legacy.clone()),
        workload_resource(short),
        named,
        garbage(api::ADDRESS, "garbage"),
        garbage(api::AUTHORIZATION, "disguised"),
        workload_resource(good),
    ];
    setup.plane.discovery.set(api::ADDRESS, all);
    let nack = until("the push is rejected", || {
        setup.plane.discovery.nacks().pop()
    });
    for part in [
        "Kubernetes//Pod/default/legacy: tunnel_protocol: ",
        "Kubernetes//Pod/default/short: addresses: ",
        "another: ",
        "Kubernetes//Pod/default/misnamed",
        "garbage: ",
        "disguised: ",
        "type.googleapis.com/istio.security.Authorization",
    ] {
        assert!(nack.contains(part), "{part} is not in {nack}");
    }
    let plane = setup.await_addresses(6);
    assert_eq!(plane["rejected"].as_object().unwrap().len(), 5, "{plane}");
    assert!(
        plane["line"].as_str().unwrap().contains("UP-CONTROL-004"),
        "{plane}"
    );
    setup.log_with(&["UP-CONTROL-004", "Kubernetes//Pod/default/legacy"]);
    let dump = setup.node.get("127.0.0.1:15000", "/config_dump").unwrap().1;
    assert!(
        dump.contains("Kubernetes//Pod/default/good")
            && dump.contains("UNSUPPORTED")
            && !dump.contains("Kubernetes//Pod/default/misnamed")
    );
    setup.exchange_with_all();
    // A rejected version leaves the previous one active, and is not acknowledged.
    let worse = garbage(api::ADDRESS, "Kubernetes//Pod/default/server");
    setup.plane.discovery.set(api::ADDRESS, [worse]);
    until("the version is rejected", || {
        (setup.plane.discovery.nacks().len() > 1).then_some(())
    });
    setup.exchange_with_all();
    let good: Vec<_> = ["legacy", "short"]
        .map(|n| workload_resource(pod(n, &[])))
        .into();
    setup.plane.discovery.set(api::ADDRESS, good);
    setup.await_plane("they are accepted", |p| {
        p["rejected"]
            .get("Kubernetes//Pod/default/legacy")
            .is_none()
    });
}

#[test]
fn a_new_stream_sends_known_versions_and_receives_changes() {
    let setup = ControlPlaneSetup::new("xds-reconnect");
    setup.exchange_with_all();
    std::fs::write(setup.node.file("token"), "the-second-token").unwrap();
    setup.plane.set_unreachable(true);
    let plane = setup.await_disconnected(3);
    assert_eq!(plane["policies"], 0);
    let has_failed = |p: &Value| {
        p["trouble"]
            .as_str()
            .is_some_and(|t| t.contains("UP-CONTROL-00"))
    };
    setup.await_plane("the reason is reported", has_failed);
    setup.exchange_with_all();
    setup
        .plane
        .discovery
        .remove(api::ADDRESS, &["default/server.default.svc.cluster.local"]);
    setup.plane.set_unreachable(false);
    setup.await_addresses(2);
    let requests = setup.plane.discovery.requests();
    let last = requests
        .iter()
        .rfind(|s| s.request.node.is_some() && s.request.type_url == api::ADDRESS)
        .unwrap();
    let names: Vec<_> = last
        .request
        .initial_resource_versions
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "Kubernetes//Pod/default/client",
        "Kubernetes//Pod/default/server",
        "default/server.default.svc.cluster.local",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        setup.plane.discovery.heads().last().unwrap().authorization,
        "Bearer the-second-token"
    );
    let dump = setup.node.get("127.0.0.1:15000", "/config_dump").unwrap().1;
    assert!(
        !dump.contains("server.default.svc.cluster.local\","),
        "the removed service is still there"
    );
}

#[test]
fn the_control_planes_root_can_change() {
    let setup = ControlPlaneSetup::new("xds-root");
    setup.exchange_with_all();
    setup.plane.change_root();
    let is_unknown = |t: &str| t.contains("UP-CONTROL-002") && t.contains("UnknownIssuer");
    setup.await_plane("the control plane is not trusted", |p| {
        p["connected"] == false && p["trouble"].as_str().is_some_and(is_unknown)
    });
    setup.exchange_with_all();
    setup.plane.publish_root();
    setup.await_sync();
    // The certificate authority has the same server: a new pod gets its certificate.
    setup.remove("client");
    setup.enrol("client");
    setup.exchange_with_all();
}

#[test]
fn a_certificate_that_does_not_match_the_request_is_not_used() {
    let setup = ControlPlaneSetup::new("ca-faults");
    let cases = [
        (CaFault::WrongIdentity(SERVER), "UP-CONTROL-007", SERVER),
        (CaFault::WrongKey, "UP-CONTROL-007", ""),
        (CaFault::Expired, "UP-CONTROL-007", ""),
        (CaFault::ForeignRoot, "UP-CONTROL-007", ""),
        (CaFault::NoRoot, "UP-CONTROL-007", ""),
        (CaFault::Garbage, "UP-CONTROL-007", ""),
        (CaFault::NoMessage, "UP-CONTROL-006", ""),
        (
            CaFault::Refuse(16, "request impersonation authentication failure"),
            "UP-CONTROL-006",
            "impersonation",
        ),
    ];
    for (fault, code, why) in cases {
        setup.plane.certificates.set_fault(Some(fault.clone()));
        setup.remove("client");
        setup.enrol("client");
        let trouble = until(&format!("{fault:?} is reported"), || {
            let status = setup.status();
            let certificates = status["certificates"].as_array().unwrap().clone();
            let client = certificates
                .iter()
                .find(|c| c["identity"] == CLIENT)?
                .clone();
            assert_ne!(client["state"], "Available", "{fault:?}");
            client["trouble"].as_str().map(str::to_owned)
        });
        assert!(
            trouble.contains(code) && trouble.contains(why),
            "{fault:?}: {trouble}"
        );
        assert!(
            setup
                .try_exchange(ControlPlaneSetup::destinations()[0])
                .is_err(),
            "{fault:?}"
        );
        setup.plane.certificates.set_fault(None);
        until("a later response is accepted", || {
            setup
                .try_exchange(ControlPlaneSetup::destinations()[0])
                .ok()
        });
    }
    setup.log_with(&["UP-CONTROL-008", CLIENT]);
    setup.exchange_with_all();
}

#[test]
fn certificate_requests_back_off() {
    let setup = ControlPlaneSetup::new("ca-retry");
    setup
        .plane
        .certificates
        .set_fault(Some(CaFault::Refuse(14, "not now")));
    setup.remove("client");
    let before = setup.plane.certificates.request_times(CLIENT).len();
    setup.enrol("client");
    let times = until("five requests", || {
        let times = setup
            .plane
            .certificates
            .request_times(CLIENT)
            .split_off(before);
        (times.len() >= 5).then_some(times)
    });
    let waits: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
    for (wait, expected) in waits.iter().zip([500, 1000, 2000, 4000]) {
        assert!(
            *wait >= Duration::from_millis(expected).mul_f64(0.8),
            "{waits:?}"
        );
    }
    setup.plane.certificates.set_fault(None);
    until("a later response is accepted", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .ok()
    });
}

#[test]
fn a_silent_certificate_authority_affects_only_new_pods() {
    let setup = ControlPlaneSetup::new("ca-silent");
    setup.exchange_with_all();
    setup.plane.certificates.set_fault(Some(CaFault::Silent));
    setup.exchange_with_all();
    setup.remove("client");
    setup.enrol("client"); // it joins at once; only its connections wait for the certificate
    assert!(
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .is_err()
    );
    setup.log_with(&["UP-CONTROL-006", CLIENT]);
    setup.plane.certificates.set_fault(None);
    until("a later response is accepted", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .ok()
    });
}

#[test]
fn certificates_are_renewed_at_half_of_their_life_and_forgotten_with_the_last_pod() {
    let setup = ControlPlaneSetup::new("ca-renew");
    let certificates = &setup.plane.certificates;
    let requests_for = |who: &str| {
        certificates
            .identities()
            .iter()
            .filter(|i| *i == who)
            .count()
    };
    assert_eq!((requests_for(CLIENT), requests_for(SERVER)), (1, 1));
    setup.remove("client");
    until("the certificate is dropped", || {
        (setup.status()["certificates"].as_array().unwrap().len() == 1).then_some(())
    });
    certificates.set_validity(Duration::from_secs(4));
    setup.enrol("client");
    let began = Instant::now();
    until("it is renewed", || {
        (requests_for(CLIENT) >= 3).then_some(())
    });
    let took = began.elapsed();
    // Validity is in whole seconds.
    assert!(took >= Duration::from_millis(900), "renewed after {took:?}");
    setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap();
    // The certificate is used while it is valid, and no longer.
    certificates.set_fault(Some(CaFault::Refuse(14, "no")));
    setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap();
    until("it has expired", || {
        let certificates = setup.status()["certificates"].as_array().unwrap().clone();
        certificates
            .iter()
            .any(|c| c["identity"] == CLIENT && c["state"] == "Expired")
            .then_some(())
    });
    // The open tunnel continues; no new one is opened.
    setup.await_refused(ControlPlaneSetup::destinations()[1]);
    setup.log_with(&["UP-CONTROL-008", CLIENT]);
    certificates.set_fault(None);
    until("a later response is accepted", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[1])
            .ok()
    });
    assert_eq!(
        requests_for(SERVER),
        1,
        "other certificates are not requested"
    );
}

#[test]
fn the_mesh_root_is_rotated_under_open_connections() {
    let setup = ControlPlaneSetup::new("ca-rotate");
    let mut open = setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap();
    let certificates = &setup.plane.certificates;
    certificates.rotate();
    setup.remove("client");
    setup.enrol("client");
    // The new pod has a certificate of the new root; the server's, of the old root, is renewed at
    // once.
    setup.exchange_with_all();
    until("all are renewed", || {
        (certificates
            .identities()
            .iter()
            .filter(|i| *i == SERVER)
            .count()
            == 2)
            .then_some(())
    });
    setup.exchange_with_all();
    drop(echo(&mut open)); // its pod has been removed
    setup.log_with(&["event=\"mesh_roots_changed\""]);
}

#[test]
fn workloads_are_requested_on_demand() {
    let setup = ControlPlaneSetup::with("xds-on-demand", &[("XDS_ON_DEMAND", "true")]);
    let requests = setup.plane.discovery.requests();
    assert_eq!(
        [
            &requests[0].request.subscribe,
            &requests[0].request.unsubscribe
        ],
        [&["*".to_owned()], &["*".to_owned()]]
    );
    setup.exchange_with_all();
    let subscribed: Vec<String> = setup
        .plane
        .discovery
        .requests()
        .into_iter()
        .flat_map(|s| s.request.subscribe)
        .filter(|n| n != "*")
        .collect();
    // The responses included their other addresses.
    assert_eq!(subscribed, ["/10.78.0.2", "/10.96.0.10"]);
}

#[test]
fn concurrent_demands_for_an_address_share_a_request() {
    let setup = ControlPlaneSetup::with("xds-together", &[("XDS_ON_DEMAND", "true")]);
    setup.plane.discovery.delay(Duration::from_millis(500));
    std::thread::scope(|scope| {
        let talk = || {
            scope.spawn(|| {
                setup
                    .try_exchange(ControlPlaneSetup::destinations()[0])
                    .map(drop)
            })
        };
        let talking: Vec<_> = (0..8).map(|_| talk()).collect();
        talking.into_iter().for_each(|t| t.join().unwrap().unwrap());
    });
    let requests = setup.plane.discovery.requests();
    let subscriptions = requests
        .iter()
        .flat_map(|s| &s.request.subscribe)
        .filter(|n| *n == "/10.78.0.2")
        .count();
    assert_eq!(subscriptions, 1);
}

#[test]
fn an_address_without_an_answer_is_refused_instead_of_connected_in_plain_text() {
    let setup = ControlPlaneSetup::with("xds-no-answer", &[("XDS_ON_DEMAND", "true")]);
    setup.plane.set_unreachable(true);
    setup.await_plane("the proxy is disconnected", |p| p["connected"] == false);
    let to = ControlPlaneSetup::destinations()[0];
    assert!(setup.try_exchange(to).is_err());
    setup.log_with(&[
        "UP-CONTROL-013",
        "direction=\"outbound\"",
        &to.ip().to_string(),
    ]);
    setup.plane.set_unreachable(false);
    until("an answer", || setup.try_exchange(to).ok());
}

#[test]
fn connections_to_a_pod_that_is_not_known_yet_wait() {
    let setup = ControlPlaneSetup::new("xds-unnamed");
    let name = "Kubernetes//Pod/default/server";
    for (ip, own) in [(PEER4, POD4), (PEER6, POD6)] {
        setup.plane.discovery.remove(api::ADDRESS, &[name]);
        // The status has the number of addresses a moment earlier than connections have the mesh.
        until("connections no longer have the pod", || {
            let dump = setup.node.get("127.0.0.1:15000", "/config_dump").ok()?.1;
            (!dump.contains(name)).then_some(())
        });
        // Its policies are not known, so connections wait until they are or a timeout.
        let mut early = connect(&setup.wire.pod, (ip, 8080).into()).unwrap();
        assert!(
            read_line(&mut early).is_err(),
            "it was served without known policies"
        );
        // The client does not know the pod either, and so connects in plain text.
        let line = setup.log_with(&["UP-PROXY-", "direction=\"inbound\"", &ip.to_string()]);
        assert!(!line.contains("dst.hbone_addr"), "{line}");
        assert!(line.contains("UP-PROXY-017"), "{line}");
        let mut early = connect(&setup.wire.pod, (ip, 8080).into()).unwrap();
        setup.publish_pods();
        assert_eq!(read_line(&mut early).unwrap(), own.to_string());
    }
}
