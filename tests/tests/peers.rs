//! What TLS peers may be: by which versions and key exchanges, of which trust domain, and revoked or not.
#![allow(clippy::unwrap_used)]

use http::{Method, Request};
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ProtocolVersion};
use underpass_tests::control_plane::{Scene, say};
use underpass_tests::peer::{Speech, dial};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, PEER6};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const HYBRID: &dyn SupportedKxGroup = kx_group::X25519MLKEM768;

/// What became of a tunnel to the server: the version and the key exchange, if it was served.
fn tunnel(scene: &Scene, identity: &str, speech: Speech) -> Result<(ProtocolVersion, NamedGroup), String> {
    let certificate = scene.plane.certificates.with_authority(|a| a.issue(identity));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = dial(&scene.wire.pod, PEER4, Some(certificate), speech).await.map_err(|e| e.to_string())?;
        let session = stream.get_ref().1;
        let spoken = (session.protocol_version().unwrap(), session.negotiated_key_exchange_group().unwrap().name());
        let (requests, connection) = h2::client::handshake::<_>(stream).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::builder().method(Method::CONNECT).uri("10.78.0.2:8080").body(()).unwrap();
        let mut requests = requests.ready().await.map_err(|e| e.to_string())?;
        let (response, _send) = requests.send_request(request, false).map_err(|e| e.to_string())?;
        let status = response.await.map_err(|e| e.to_string())?.status();
        if status == 200 { Ok(spoken) } else { Err(status.to_string()) }
    })
}

#[test]
fn versions_and_key_exchanges_are_as_configured() {
    let groups = |groups: &[&'static dyn SupportedKxGroup]| Speech { groups: groups.to_vec(), ..Speech::default() };
    let tls12 = Speech { versions: vec![&TLS12], ..Speech::default() };
    let classic = groups(&[kx_group::X25519]);

    let scene = Scene::new("tls-default");
    let tls13 = |group| Ok((ProtocolVersion::TLSv1_3, group));
    let hybrid = groups(&[HYBRID, kx_group::X25519]);
    assert_eq!(tunnel(&scene, CLIENT, hybrid.clone()), tls13(NamedGroup::X25519MLKEM768));
    for (group, name) in [(kx_group::X25519, NamedGroup::X25519), (kx_group::SECP256R1, NamedGroup::secp256r1)] {
        assert_eq!(tunnel(&scene, CLIENT, groups(&[group])), tls13(name));
    }
    let none = Speech { alpn: vec![], ..hybrid.clone() };
    assert_eq!(tunnel(&scene, CLIENT, none), tls13(NamedGroup::X25519MLKEM768), "without ALPN");
    assert!(tunnel(&scene, CLIENT, tls12.clone()).is_err());
    scene.log_with(&["UP-PROXY-005", "incompatible"]);
    drop(scene);

    let scene = Scene::with("tls-pqc", &[("COMPLIANCE_POLICY", "pqc")]);
    scene.talk();
    assert_eq!(tunnel(&scene, CLIENT, hybrid), tls13(NamedGroup::X25519MLKEM768));
    assert!(tunnel(&scene, CLIENT, classic).is_err());
    scene.log_with(&["UP-PROXY-005", "incompatible"]);
    drop(scene);

    let scene = Scene::with("tls-12", &[("TLS12_ENABLED", "true")]);
    scene.talk();
    assert!(matches!(tunnel(&scene, CLIENT, tls12), Ok((ProtocolVersion::TLSv1_2, _))));
    let both = Speech { versions: vec![&TLS12, &TLS13], ..Speech::default() };
    assert!(matches!(tunnel(&scene, CLIENT, both), Ok((ProtocolVersion::TLSv1_3, _))));
}

#[test]
fn an_alias_of_the_trust_domain_is_accepted() {
    let scene = Scene::with("tls-alias", &[("UNDERPASS_TRUST_DOMAIN_ALIASES", "old.example,older.example")]);
    for domain in ["cluster.local", "old.example", "older.example"] {
        let identity = format!("spiffe://{domain}/ns/default/sa/client");
        assert!(tunnel(&scene, &identity, Speech::default()).is_ok(), "{domain}");
    }
    assert!(tunnel(&scene, "spiffe://other.example/ns/default/sa/client", Speech::default()).is_err());
    scene.log_with(&["UP-PROXY-005", "the peer's trust domain is other.example, ours is cluster.local"]);
}

#[test]
fn connections_of_a_revoked_certificate_are_cut() {
    let folder = underpass_tests::folder::folder("crl");
    let crl = folder.join("crl.pem");
    let write = |text: &str| {
        std::fs::write(folder.join("staged"), text).unwrap();
        std::fs::rename(folder.join("staged"), &crl).unwrap();
    };
    let other = underpass_tests::control_plane::Authority::new("another");
    write(&other.revoke(&["01"]));
    let scene = Scene::with("tls-crl", &[("CRL_PATH", crl.to_str().unwrap())]);
    scene.talk();
    let mut open: Vec<_> = [PEER4, PEER6].map(|ip| scene.try_talk((ip, 8080).into()).unwrap()).into();
    let serial = |who: &str| {
        let status = scene.status();
        let certificates = status["certificates"].as_array().unwrap().clone();
        let identity = format!("spiffe://cluster.local/ns/default/sa/{who}");
        certificates.iter().find(|c| c["identity"] == identity.as_str()).unwrap()["serial"].as_str().unwrap().to_owned()
    };
    // A list that cannot be read changes nothing, and is told.
    write("no list");
    until("it is told", || {
        scene.status()["revocationTrouble"].as_str().filter(|t| t.contains("UP-CONTROL-010")).map(drop)
    });
    scene.talk();
    open.iter_mut().for_each(|o| say(o).unwrap());
    // The client's certificate is revoked: its connections end, and there are no new ones.
    let client = serial("client");
    write(&scene.plane.certificates.with_authority(|a| a.revoke(&[&client])));
    for stream in &mut open {
        until("an open connection is cut", || say(stream).is_err().then_some(()));
    }
    scene.refused(Scene::destinations()[0]);
    scene.log_with(&["UP-CONTROL-009", "the certificate of spiffe://cluster.local/ns/default/sa/client is revoked"]);
    assert!(scene.status()["revocationTrouble"].is_null());
    // It is the server's instead: the client refuses to talk to it.
    let server = serial("server");
    write(&scene.plane.certificates.with_authority(|a| a.revoke(&[&server])));
    scene.refused(Scene::destinations()[0]);
    scene.log_with(&["UP-CONTROL-009", "the certificate of spiffe://cluster.local/ns/default/sa/server is revoked"]);
    let metrics = scene.node.get("127.0.0.1:15020", "/metrics").unwrap().1;
    for reporter in ["source", "destination"] {
        let count = |metric: &str| {
            let line = format!("istio_crl_{metric}_total{{reporter=\"{reporter}\"}} ");
            metrics.lines().find_map(|l| l.strip_prefix(&line)?.parse::<u64>().ok()).unwrap()
        };
        assert!(count("policy_rejections") >= 1, "{metrics}");
        assert_eq!(count("untracked_connections"), 0);
    }
    write(&other.revoke(&["01"]));
    until("all is well again", || scene.try_talk(Scene::destinations()[0]).ok());
    std::fs::remove_dir_all(folder).unwrap();
}
