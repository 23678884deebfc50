//! Which TLS peers are accepted: versions, key exchanges, trust domains and revocation.
#![allow(clippy::unwrap_used)]

use http::{Method, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ProtocolVersion};
use underpass_tests::control_plane::resources::{pod, workload_resource};
use underpass_tests::control_plane::{ControlPlaneSetup, echo};
use underpass_tests::sandbox::until;
use underpass_tests::tls_client::{TlsOptions, dial};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6};

/// The name of the mesh's authority.
const MESH_ROOT: &str = "the mesh's root";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const HYBRID: &dyn SupportedKxGroup = kx_group::X25519MLKEM768;

/// Opens a tunnel to the server; returns version and key exchange if it is served.
fn tunnel(
    setup: &ControlPlaneSetup,
    identity: &str,
    speech: TlsOptions,
) -> Result<(ProtocolVersion, NamedGroup), String> {
    let certificate = setup
        .plane
        .certificates
        .with_authority(|a| a.issue(identity));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = dial(&setup.wire.pod, PEER4, Some(certificate), speech)
            .await
            .map_err(|e| e.to_string())?;
        let session = stream.get_ref().1;
        let negotiated = (
            session.protocol_version().unwrap(),
            session.negotiated_key_exchange_group().unwrap().name(),
        );
        let (requests, connection) = h2::client::handshake::<_>(stream)
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("10.78.0.2:8080")
            .body(())
            .unwrap();
        let mut requests = requests.ready().await.map_err(|e| e.to_string())?;
        let (response, _send) = requests
            .send_request(request, false)
            .map_err(|e| e.to_string())?;
        let status = response.await.map_err(|e| e.to_string())?.status();
        if status == 200 {
            Ok(negotiated)
        } else {
            Err(status.to_string())
        }
    })
}

#[test]
fn versions_and_key_exchanges_are_as_configured() {
    let groups = |groups: &[&'static dyn SupportedKxGroup]| TlsOptions {
        groups: groups.to_vec(),
        ..TlsOptions::default()
    };
    let tls12 = TlsOptions {
        versions: vec![&TLS12],
        ..TlsOptions::default()
    };
    let classic = groups(&[kx_group::X25519]);

    let setup = ControlPlaneSetup::new("tls-default");
    let tls13 = |group| Ok((ProtocolVersion::TLSv1_3, group));
    let hybrid = groups(&[HYBRID, kx_group::X25519]);
    assert_eq!(
        tunnel(&setup, CLIENT, hybrid.clone()),
        tls13(NamedGroup::X25519MLKEM768)
    );
    for (group, name) in [
        (kx_group::X25519, NamedGroup::X25519),
        (kx_group::SECP256R1, NamedGroup::secp256r1),
    ] {
        assert_eq!(tunnel(&setup, CLIENT, groups(&[group])), tls13(name));
    }
    let none = TlsOptions {
        alpn: vec![],
        ..hybrid.clone()
    };
    assert_eq!(
        tunnel(&setup, CLIENT, none),
        tls13(NamedGroup::X25519MLKEM768),
        "without ALPN"
    );
    assert!(tunnel(&setup, CLIENT, tls12.clone()).is_err());
    setup.log_with(&["UP-PROXY-005", "incompatible"]);
    drop(setup);

    let setup = ControlPlaneSetup::with("tls-pqc", &[("COMPLIANCE_POLICY", "pqc")]);
    setup.exchange_with_all();
    assert_eq!(
        tunnel(&setup, CLIENT, hybrid),
        tls13(NamedGroup::X25519MLKEM768)
    );
    assert!(tunnel(&setup, CLIENT, classic).is_err());
    setup.log_with(&["UP-PROXY-005", "incompatible"]);
    drop(setup);

    let setup = ControlPlaneSetup::with("tls-12", &[("TLS12_ENABLED", "true")]);
    setup.exchange_with_all();
    assert!(matches!(
        tunnel(&setup, CLIENT, tls12),
        Ok((ProtocolVersion::TLSv1_2, _))
    ));
    let both = TlsOptions {
        versions: vec![&TLS12, &TLS13],
        ..TlsOptions::default()
    };
    assert!(matches!(
        tunnel(&setup, CLIENT, both),
        Ok((ProtocolVersion::TLSv1_3, _))
    ));
}

#[test]
fn an_alias_of_the_trust_domain_is_accepted() {
    let setup = ControlPlaneSetup::with(
        "tls-alias",
        &[
            ("UNDERPASS_TRUST_DOMAIN_ALIASES", "old.example"),
            ("TRUST_DOMAINS", "cluster.local,older.example"),
        ],
    );
    for domain in ["cluster.local", "old.example", "older.example"] {
        let identity = format!("spiffe://{domain}/ns/default/sa/client");
        assert!(
            tunnel(&setup, &identity, TlsOptions::default()).is_ok(),
            "{domain}"
        );
    }
    assert!(
        tunnel(
            &setup,
            "spiffe://other.example/ns/default/sa/client",
            TlsOptions::default()
        )
        .is_err()
    );
    setup.log_with(&["UP-PROXY-005", "other.example"]);
}

#[test]
fn a_client_learns_that_its_certificate_was_rejected() {
    let mut setup = ControlPlaneSetup::without_pods("tls-rejected");
    let client = api::workload::Workload {
        trust_domain: "other.example".to_owned(),
        ..pod("client", &[POD4, POD6])
    };
    let resources = [client, pod("server", &[PEER4, PEER6])].map(workload_resource);
    setup.plane.discovery.set(api::ADDRESS, resources);
    setup.start_proxy(&[]);
    setup.await_ready();
    setup.enrol("client");
    setup.enrol("server");
    for ip in [PEER4, PEER6] {
        assert!(setup.try_exchange((ip, 8080).into()).is_err());
        let destination = format!("dst.addr={}", std::net::SocketAddr::new(ip, 15008));
        let rejected = "the peer rejected this side's certificate";
        setup.log_with(&["direction=\"outbound\"", &destination, rejected]);
    }
    setup.log_with(&["UP-PROXY-005", "the peer's trust domain is other.example"]);
}

/// Connects until an error names the certificate of this service account as revoked. A refused
/// connection alone proves nothing: the list before may have refused it.
fn await_revoked(setup: &ControlPlaneSetup, account: &str) {
    let identity = format!("spiffe://cluster.local/ns/default/sa/{account} ");
    let names_it = |line: &str| {
        line.split_once("UP-CONTROL-009")
            .is_some_and(|(_, error)| error.contains(&identity))
    };
    until(&format!("the certificate of {account} is rejected"), || {
        let _ = setup.try_exchange(ControlPlaneSetup::destinations()[0]);
        setup.node.log("proxy").lines().any(names_it).then_some(())
    });
}

#[test]
fn connections_of_a_revoked_certificate_are_closed() {
    let folder = underpass_tests::folder::folder("crl");
    let crl = folder.join("crl.pem");
    let write = |text: &str| {
        std::fs::write(folder.join("staged"), text).unwrap();
        std::fs::rename(folder.join("staged"), &crl).unwrap();
    };
    let other = underpass_tests::control_plane::Authority::new("another");
    write(&other.revoke(&["01"]));
    let setup = ControlPlaneSetup::with("tls-crl", &[("CRL_PATH", crl.to_str().unwrap())]);
    setup.exchange_with_all();
    let mut open: Vec<_> = [PEER4, PEER6]
        .map(|ip| setup.try_exchange((ip, 8080).into()).unwrap())
        .into();
    let serial = |who: &str| {
        let status = setup.status();
        let certificates = status["certificates"].as_array().unwrap().clone();
        let identity = format!("spiffe://cluster.local/ns/default/sa/{who}");
        certificates
            .iter()
            .find(|c| c["identity"] == identity.as_str())
            .unwrap()["serial"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    // An unreadable list changes nothing and is reported.
    write("no list");
    until("it is reported", || {
        setup.status()["revocationTrouble"]
            .as_str()
            .filter(|t| t.contains("UP-CONTROL-010"))
            .map(drop)
    });
    setup.exchange_with_all();
    open.iter_mut().for_each(|o| echo(o).unwrap());
    // The client's certificate is revoked: its connections are closed and new ones refused.
    let client = serial("client");
    write(
        &setup
            .plane
            .certificates
            .with_authority(|a| a.revoke(&[&client])),
    );
    for stream in &mut open {
        until("an open connection is closed", || {
            echo(stream).is_err().then_some(())
        });
    }
    setup.await_refused(ControlPlaneSetup::destinations()[0]);
    await_revoked(&setup, "client");
    assert!(setup.status()["revocationTrouble"].is_null());
    // The server's certificate is revoked instead: the client rejects it.
    let server = serial("server");
    write(
        &setup
            .plane
            .certificates
            .with_authority(|a| a.revoke(&[&server])),
    );
    setup.await_refused(ControlPlaneSetup::destinations()[0]);
    await_revoked(&setup, "server");
    let metrics = setup.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
    for reporter in ["source", "destination"] {
        let count = |metric: &str| {
            let line = format!("istio_crl_{metric}_total{{reporter=\"{reporter}\"}} ");
            metrics
                .lines()
                .find_map(|l| l.strip_prefix(&line)?.parse::<u64>().ok())
                .unwrap()
        };
        assert!(count("policy_rejections") >= 1, "{metrics}");
        assert_eq!(count("untracked_connections"), 0);
    }
    write(&other.revoke(&["01"]));
    until("connections are served again", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .ok()
    });
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_list_that_another_key_signed_is_ignored_and_reported() {
    let folder = underpass_tests::folder::folder("crl-key");
    let lists = folder.join("lists");
    std::fs::create_dir(&lists).unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join("staged"), text).unwrap();
        std::fs::rename(folder.join("staged"), lists.join(name)).unwrap();
    };
    let setup = ControlPlaneSetup::with("tls-crl-key", &[("CRL_PATH", lists.to_str().unwrap())]);
    setup.exchange_with_all();
    // An earlier key of the authority, which had the same name.
    let earlier = underpass_tests::control_plane::Authority::new(MESH_ROOT);
    write("a-earlier.pem", &earlier.revoke(&["01"]));
    write("b-broken.pem", "no list");
    let reported = |words: &[&str]| {
        until("the list is reported", || {
            let _ = setup.try_exchange(ControlPlaneSetup::destinations()[0]);
            let status = setup.status();
            let trouble = status["revocationTrouble"].as_str().unwrap_or_default();
            words.iter().all(|w| trouble.contains(w)).then_some(())
        });
    };
    // A new tunnel verifies a peer with it.
    setup.remove("server");
    setup.enrol("server");
    reported(&["UP-CONTROL-010", "a-earlier.pem", "b-broken.pem"]);
    setup.exchange_with_all();
    // A valid list beside them applies.
    let serial = setup.status()["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["identity"] == CLIENT)
        .unwrap()["serial"]
        .as_str()
        .unwrap()
        .to_owned();
    let authority = &setup.plane.certificates;
    write(
        "c-current.pem",
        &authority.with_authority(|a| a.revoke(&[&serial])),
    );
    setup.await_refused(ControlPlaneSetup::destinations()[0]);
    await_revoked(&setup, "client");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_pod_is_served_until_a_revocation_list_can_be_read() {
    let folder = underpass_tests::folder::folder("crl-start");
    let lists = folder.join("lists");
    std::fs::create_dir(&lists).unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join("staged"), text).unwrap();
        std::fs::rename(folder.join("staged"), lists.join(name)).unwrap();
    };
    write("a-broken.pem", "no list");
    let mut setup = ControlPlaneSetup::without_pods("tls-crl-start");
    setup.publish_pods();
    setup.start_proxy(&[("CRL_PATH", lists.to_str().unwrap())]);
    until("the proxy answers", || setup.readiness().ok());
    setup.await_sync();
    let (status, reason) = setup.readiness().unwrap();
    assert_eq!(status, 500);
    assert!(reason.contains("revocation lists"), "{reason}");
    let trouble = || {
        let trouble = setup.status()["revocationTrouble"].clone();
        trouble.as_str().unwrap_or_default().to_owned()
    };
    assert!(trouble().contains("UP-CONTROL-014") && trouble().contains("a-broken.pem"));
    setup.log_with(&["UP-CONTROL-014", "a-broken.pem"]);
    assert!(!setup.try_enrol("client").status.success());
    // One list suffices. The other file is still reported.
    write(
        "b.pem",
        &setup
            .plane
            .certificates
            .with_authority(|a| a.revoke(&["01"])),
    );
    setup.await_ready();
    setup.enrol("client");
    setup.enrol("server");
    setup.exchange_with_all();
    assert!(trouble().contains("UP-CONTROL-014") && trouble().contains("a-broken.pem"));
    // A process that was stopped for a while continues to follow changes.
    let proxy = Pid::from_raw(i32::try_from(setup.proxy).unwrap());
    for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
        kill(proxy, signal).unwrap();
    }
    std::fs::remove_file(lists.join("a-broken.pem")).unwrap();
    until("the files are read again", || {
        trouble().is_empty().then_some(())
    });
    drop(setup);
    std::fs::remove_dir_all(folder).unwrap();
}
