//! A control plane that fails, repeats, floods or is unreachable: the known mesh stays active, and
//! costs are bounded.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::discovery::{DeltaResponse, Resource};
use api::workload::Workload;
use netns::NetNs;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use underpass_tests::control_plane::resources::{
    deny, garbage, pod, policy_resource, workload_resource,
};
use underpass_tests::control_plane::{ControlPlaneSetup, echo, is_in_sync};
use underpass_tests::sandbox::{PATIENCE, until};

#[test]
fn a_control_plane_that_misbehaves_stops_no_traffic() {
    let setup = ControlPlaneSetup::new("xds-faults");
    setup.exchange_with_all();
    let d = &setup.plane.discovery;
    let before = setup.memory();
    let in_step = || assert_eq!(setup.await_sync()["policies"], 0);
    let again = |what: &str, streams: usize| {
        until(&format!("another stream after {what}"), || {
            (d.heads().len() > streams).then_some(())
        });
        in_step();
        setup.exchange_with_all();
    };

    // The stream is dropped, or ended with a status.
    let faults: [(&str, &dyn Fn()); 4] = [
        ("a drop", &|| setup.plane.drop_connections()),
        ("an end", &|| d.end(0, "")),
        ("UNAVAILABLE", &|| d.end(14, "transport is closing")),
        ("a refusal", &|| d.end(16, "request authenticate failure")),
    ];
    for (what, fault) in faults {
        let streams = d.heads().len();
        fault();
        again(what, streams);
    }
    setup.log_with(&["UP-CONTROL-003", "request authenticate failure"]);

    // Garbage instead of a message, and a partial message.
    let streams = d.heads().len();
    d.send_raw(64, vec![0xffu8; 64]);
    again("garbage", streams);
    let streams = d.heads().len();
    d.send_raw(1 << 20, vec![0u8; 1000]);
    setup.exchange_with_all();
    setup.plane.drop_connections();
    again("half a push", streams);
    // A message whose length is above the limit.
    let streams = d.heads().len();
    d.send_raw((1 << 32) - 1, vec![0u8; 1000]);
    again("a message of 4 GiB", streams);
    setup.log_with(&["UP-CONTROL-003", "OutOfRange"]);

    // A type that was not requested, and pushes without content.
    let unknown = DeltaResponse {
        type_url: "type.googleapis.com/x".to_owned(),
        ..DeltaResponse::default()
    };
    d.send(unknown);
    d.send(DeltaResponse {
        type_url: api::ADDRESS.to_owned(),
        ..DeltaResponse::default()
    });
    let removed = vec!["unknown".to_owned(); 10_000];
    d.send(DeltaResponse {
        type_url: api::ADDRESS.to_owned(),
        removed_resources: removed,
        ..DeltaResponse::default()
    });
    let empty = vec![Resource::default(); 10_000];
    d.send(DeltaResponse {
        type_url: api::ADDRESS.to_owned(),
        resources: empty,
        ..DeltaResponse::default()
    });
    let refusal = until("the empty ones are rejected", || d.nacks().pop());
    assert!(
        refusal.len() < 10_000,
        "the message for 10,000 resources has {} bytes",
        refusal.len()
    );
    let acknowledged = |url: &str| {
        d.requests()
            .iter()
            .any(|s| s.request.type_url == url && s.request.error_detail.is_none())
    };
    assert!(
        acknowledged("type.googleapis.com/x"),
        "an unknown type is not acknowledged"
    );
    setup.exchange_with_all();

    // It accepts the connection and sends nothing.
    for url in [api::ADDRESS, api::AUTHORIZATION] {
        d.silence(url, true);
    }
    setup.plane.drop_connections();
    let plane = setup.await_awaited(&["address", "authorization"]);
    assert_eq!(plane["addresses"], 3);
    setup.await_plane("the state becomes older", |p| {
        p["stateAgeS"].as_u64() >= Some(1)
    });
    assert_eq!(
        setup.readiness().unwrap().0,
        200,
        "the proxy is no longer ready"
    );
    setup.exchange_with_all();
    for url in [api::ADDRESS, api::AUTHORIZATION] {
        d.silence(url, false);
    }
    // It responds late.
    d.delay(Duration::from_millis(700));
    setup.plane.drop_connections();
    setup.await_plane("nothing was received yet", |p| {
        p["connected"] == true && !is_in_sync(p)
    });
    setup.exchange_with_all();
    in_step();
    let after = setup.memory();
    assert!(
        after < before + 64,
        "{before} MiB before, {after} MiB after"
    );
    assert!(!setup.node.log("proxy").contains("panicked"));
}

#[test]
fn a_mesh_too_large_for_a_request_is_current_again_after_a_reconnect() {
    let setup = ControlPlaneSetup::new("xds-52000");
    let name =
        |i| format!("Kubernetes//Pod/a-namespace-of-the-usual-length/a-workload-with-{i:018}");
    let others = (0..52_000u32).map(|i| {
        let mut workload = pod(
            &format!("other-{i}"),
            &[Ipv4Addr::from(0x0b00_0000 + i).into()],
        );
        workload.uid = name(i);
        workload_resource(workload)
    });
    setup.plane.discovery.set(api::ADDRESS, others);
    setup.await_addresses(52_003);
    setup.plane.set_unreachable(true);
    setup.await_disconnected(52_003);
    let removed: Vec<String> = (0..1000).map(name).collect();
    let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
    setup.plane.discovery.remove(api::ADDRESS, &removed);
    let streams = setup.plane.discovery.heads().len();
    setup.plane.set_unreachable(false);
    setup.await_addresses(51_003);
    assert_eq!(setup.plane.discovery.heads().len(), streams + 1);
    setup.exchange_with_all();
    // Changes arrive as before.
    setup.plane.discovery.remove(api::ADDRESS, &[&name(1000)]);
    setup.await_addresses(51_002);
}

#[test]
fn a_push_of_two_hundred_mebibytes_blocks_nothing() {
    let setup = ControlPlaneSetup::new("xds-huge");
    let before = setup.memory();
    // Large messages of which little is kept.
    let filler = "x".repeat(8 * 1024);
    let mut resources: Vec<Resource> = Vec::new();
    for i in 0..24_000 {
        let mut workload = pod(&format!("filler-{i}"), &[]);
        workload.uid = format!("filler-{i}");
        let mut resource = workload_resource(workload);
        // An unknown field, as of a later version.
        let value = &mut resource.resource.as_mut().unwrap().value;
        let mut bytes = value.to_vec();
        bytes.extend(unknown_field(filler.as_bytes()));
        *value = bytes.into();
        resource.version = "1".to_owned();
        resources.push(resource);
    }
    let response = DeltaResponse {
        type_url: api::ADDRESS.to_owned(),
        resources,
        ..DeltaResponse::default()
    };
    let size = prost::Message::encoded_len(&response) >> 20;
    assert!((180..200).contains(&size), "{size} MiB");
    setup.plane.discovery.send(response);
    let began = Instant::now();
    let mut most = before;
    let slowest = setup.exchange_until(|| {
        most = most.max(setup.memory());
        assert!(began.elapsed() < PATIENCE, "the push was not applied");
        setup.plane_status()["addresses"] == 24_003
    });
    let applied = began.elapsed();
    assert!(
        slowest < applied / 3,
        "a new connection took {slowest:?} of the {applied:?} until the push was applied"
    );
    assert!(
        most < before + 1024,
        "{before} MiB before, {most} MiB at most"
    );
    println!("slowest {slowest:?} of {applied:?}, {before} MiB before, {most} MiB at most");
    // Larger pushes are rejected without harm.
    let streams = setup.plane.discovery.heads().len();
    setup
        .plane
        .discovery
        .send_raw((200 << 20) + 1, vec![0u8; 1000]);
    until("another stream", || {
        (setup.plane.discovery.heads().len() > streams).then_some(())
    });
    setup.exchange_with_all();
}

/// An encoded field with number 200 and these bytes.
fn unknown_field(bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(200, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend_from_slice(bytes);
    field
}

#[test]
fn a_mesh_older_than_its_limit_refuses_new_connections() {
    let setup = ControlPlaneSetup::with("state-age", &[("UNDERPASS_MAX_STATE_AGE", "1s")]);
    let mut open = setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap();
    setup.plane.set_unreachable(true);
    let plane = setup.await_plane("the limit has passed", |p| {
        p["line"].as_str().unwrap().contains("UP-CONTROL-011")
    });
    assert!(plane["stateAgeS"].as_u64() >= Some(1), "{plane}");
    ControlPlaneSetup::destinations()
        .into_iter()
        .for_each(|to| setup.await_refused(to));
    setup.log_with(&["UP-CONTROL-011", "direction=\"outbound\""]);
    let around = |to: SocketAddr| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(0x539)?; // like the proxy's own connections, which are not captured
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(&to.into())?;
        echo(&mut socket.into())
    };
    assert!(
        setup
            .wire
            .pod
            .run(|| around(ControlPlaneSetup::destinations()[0]))
            .unwrap()
            .is_err()
    );
    setup.log_with(&["UP-CONTROL-011", "direction=\"inbound\""]);
    echo(&mut open).unwrap(); // open connections continue
    setup.plane.set_unreachable(false);
    until("connections are accepted", || {
        setup
            .try_exchange(ControlPlaneSetup::destinations()[0])
            .ok()
    });
    setup.exchange_with_all();
}

/// A thousand updates a second, in pushes of fifty, over five thousand workloads.
#[test]
fn a_constantly_changing_mesh_stops_no_traffic_and_is_applied() {
    let setup = ControlPlaneSetup::new("xds-churn");
    let other = |i: usize, revision: usize| {
        let ip = [
            10,
            90,
            u8::try_from(i / 250).unwrap(),
            u8::try_from(i % 250).unwrap(),
        ]
        .into();
        workload_resource(Workload {
            canonical_revision: revision.to_string(),
            ..pod(&format!("other-{i}"), &[ip])
        })
    };
    let d = &setup.plane.discovery;
    d.set(api::ADDRESS, (0..5_000).map(|i| other(i, 0)));
    setup.await_addresses(5_003);
    let before = setup.memory();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let began = Instant::now();
            for revision in 1..=160 {
                let first = revision * 50 % 5_000;
                d.set(
                    api::ADDRESS,
                    (first..first + 50).map(|i| other(i, revision)),
                );
                // Policies change as well, without an effect on these pods.
                d.set(
                    api::AUTHORIZATION,
                    [policy_resource(deny(
                        "elsewhere",
                        &format!("unknown-{revision}"),
                    ))],
                );
                let due = Duration::from_millis(50) * u32::try_from(revision).unwrap();
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            d.set(api::ADDRESS, (0..5_000).map(|i| other(i, 1_000_000)));
            over.store(true, Ordering::Relaxed);
        });
        setup.exchange_until(|| over.load(Ordering::Relaxed));
        churn.join().unwrap();
    });
    until("the last change is active", || {
        let dump = setup.node.get("127.0.0.1:15000", "/config_dump").ok()?.1;
        let dump: Value = serde_json::from_str(&dump).ok()?;
        let workloads = dump["workloads"].as_array()?;
        (workloads
            .iter()
            .filter(|w| w["canonicalRevision"] == "1000000")
            .count()
            == 5_000)
            .then_some(())
    });
    assert_eq!(d.nacks(), [] as [&str; 0]);
    let after = setup.memory();
    assert!(
        after < before + 64,
        "{before} MiB before, {after} MiB after"
    );
}

/// Rejected resources are resent at once, as by a control plane that ignores NACKs.
#[test]
fn rejected_resources_that_are_resent_cost_little() {
    let setup = ControlPlaneSetup::new("xds-insists");
    let d = &setup.plane.discovery;
    // A policy that cannot be decoded denies in its namespace, which is that of no pod here.
    let again = || {
        d.set(
            api::AUTHORIZATION,
            [garbage(api::AUTHORIZATION, "elsewhere/nonsense")],
        )
    };
    again();
    until("it is rejected", || (!d.nacks().is_empty()).then_some(()));
    let before = setup.memory();
    let mut sent = 1;
    setup.exchange_until(|| {
        if d.nacks().len() >= sent {
            again();
            sent += 1;
        }
        sent > 500
    });
    let rejected = setup.plane_status()["rejected"].clone();
    assert!(rejected.get("elsewhere/nonsense").is_some(), "{rejected}");
    assert_eq!(rejected.as_object().unwrap().len(), 1, "{rejected}");
    let after = setup.memory();
    assert!(
        after < before + 32,
        "{before} MiB before, {after} MiB after"
    );
    let lines = setup
        .node
        .log("proxy")
        .lines()
        .filter(|l| l.contains("elsewhere/nonsense"))
        .count();
    assert!(lines <= sent, "{lines} lines for {sent} NACKs");
    d.remove(api::AUTHORIZATION, &["elsewhere/nonsense"]);
    setup.await_plane("nothing is rejected any more", |p| {
        p["rejected"].as_object().unwrap().is_empty()
    });
    setup.exchange_with_all();
}

#[test]
fn connection_attempts_to_an_unreachable_control_plane_back_off() {
    let setup = ControlPlaneSetup::new("xds-backoff");
    setup.exchange_with_all(); // so no certificate is missing, which would be requested as well
    setup.plane.set_unreachable(true);
    let refused_connections = until("nine attempts", || {
        let refused_connections = setup.plane.refused_connections();
        (refused_connections.len() >= 9).then_some(refused_connections)
    });
    let waits: Vec<_> = refused_connections
        .windows(2)
        .take(8)
        .map(|w| w[1] - w[0])
        .collect();
    for (wait, expected) in waits.iter().zip([10, 20, 40, 80, 160, 320, 640, 1280]) {
        assert!(*wait >= Duration::from_millis(expected), "{waits:?}");
    }
    setup.exchange_with_all();
    setup.plane.set_unreachable(false);
    setup.await_sync();
}

#[test]
fn a_control_plane_outage_of_a_minute_is_survived() {
    let setup = ControlPlaneSetup::new("xds-minute");
    setup.exchange_with_all();
    setup.plane.set_unreachable(true);
    setup.plane.drop_connections();
    let stopped = Instant::now();
    setup.exchange_until(|| {
        std::thread::sleep(Duration::from_millis(200));
        stopped.elapsed() > Duration::from_secs(60)
    });
    let plane = setup.await_disconnected(3);
    assert!(
        plane["stateAgeS"]
            .as_u64()
            .is_some_and(|age| (58..120).contains(&age)),
        "{plane}"
    );
    // The mesh changes meanwhile.
    setup.plane.discovery.set(
        api::AUTHORIZATION,
        [policy_resource(deny(
            "no-client",
            "cluster.local/ns/default/sa/client",
        ))],
    );
    setup.plane.set_unreachable(false);
    until("the proxy is in sync again", || {
        is_in_sync(&setup.plane_status()).then_some(())
    });
    setup.await_refused(ControlPlaneSetup::destinations()[0]);
}

/// A listener whose queue is full, so that the kernel drops the first packet of each connection.
fn swallow(netns: &NetNs, address: SocketAddr) -> Vec<Socket> {
    let fill = || {
        let domain = Domain::for_address(address);
        let socket = || Socket::new(domain, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address.into()); // in progress
            sockets.push(client);
        }
        sockets
    };
    netns.run(fill).unwrap()
}

#[test]
fn an_address_of_istiod_that_swallows_packets_delays_neither_mesh_nor_certificates() {
    const HOST: &str = "istiod.example";
    // Whichever address the resolver puts first, it is the silent one in one of these.
    for (silent, good) in [
        ("::1", "127.0.0.1"),
        ("127.0.0.9", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.9"),
    ] {
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 15012);
        let mut setup = ControlPlaneSetup::without_pods_at("two-addresses", address(good));
        let _silent = swallow(&setup.node.netns, address(silent));
        setup.publish_pods();
        let server = format!("https://{HOST}:15012");
        let environment = [
            ("XDS_ADDRESS", server.as_str()),
            ("CA_ADDRESS", server.as_str()),
        ];
        setup.start_proxy_with_hosts(&environment, &format!("{silent} {HOST}\n{good} {HOST}\n"));
        setup.await_ready();
        setup.enrol("client");
        setup.enrol("server");
        setup.exchange_with_all();
        // The stream and further certificates come from the good address again.
        setup.plane.drop_connections();
        setup.await_sync();
        let requests = setup.plane.certificates.requests().len();
        setup.remove("server");
        setup.enrol("server");
        setup.exchange_with_all();
        assert!(setup.plane.certificates.requests().len() >= requests);
    }
}
