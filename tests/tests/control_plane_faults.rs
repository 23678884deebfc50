//! A control plane that fails, insists, floods or goes away: what is known goes on, and costs stay bounded.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::discovery::{DeltaResponse, Resource};
use api::workload::Workload;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use underpass_tests::control_plane::resources::{deny, garbage, pod, policy_resource, workload_resource};
use underpass_tests::control_plane::{Scene, say};
use underpass_tests::sandbox::{await_within, until};

#[test]
fn a_control_plane_that_misbehaves_stops_no_traffic() {
    let scene = Scene::new("xds-faults");
    scene.talk();
    let d = &scene.plane.discovery;
    let before = scene.memory();
    let in_step = || drop(scene.line_with(&["in step with", "addresses, 0 policies"]));
    let again = |what: &str, streams: usize| {
        until(&format!("another stream after {what}"), || (d.heads().len() > streams).then_some(()));
        in_step();
        scene.talk();
    };

    // The stream is dropped, and ended with statuses.
    let faults: [(&str, &dyn Fn()); 4] = [
        ("a drop", &|| scene.plane.cut()),
        ("an end", &|| d.end(0, "")),
        ("UNAVAILABLE", &|| d.end(14, "transport is closing")),
        ("a refusal", &|| d.end(16, "request authenticate failure")),
    ];
    for (what, fault) in faults {
        let streams = d.heads().len();
        fault();
        again(what, streams);
    }
    scene.log_with(&["UP-CONTROL-003", "request authenticate failure"]);

    // Garbage instead of a message, and half of one.
    let streams = d.heads().len();
    d.send_raw(64, vec![0xffu8; 64]);
    again("garbage", streams);
    let streams = d.heads().len();
    d.send_raw(1 << 20, vec![0u8; 1000]);
    scene.talk();
    scene.plane.cut();
    again("half a push", streams);
    // One that says it is larger than any may be.
    let streams = d.heads().len();
    d.send_raw((1 << 32) - 1, vec![0u8; 1000]);
    again("a message of 4 GiB", streams);
    scene.log_with(&["UP-CONTROL-003", "OutOfRange"]);

    // A type that nobody asked for, and pushes that say nothing.
    let unknown = DeltaResponse { type_url: "type.googleapis.com/x".to_owned(), ..DeltaResponse::default() };
    d.send(unknown);
    d.send(DeltaResponse { type_url: api::ADDRESS.to_owned(), ..DeltaResponse::default() });
    let removed = vec!["nobody".to_owned(); 10_000];
    d.send(DeltaResponse { type_url: api::ADDRESS.to_owned(), removed_resources: removed, ..DeltaResponse::default() });
    let empty = vec![Resource::default(); 10_000];
    d.send(DeltaResponse { type_url: api::ADDRESS.to_owned(), resources: empty, ..DeltaResponse::default() });
    until("the empty ones are refused", || d.refusals().iter().any(|r| r.ends_with("more")).then_some(()));
    let acknowledged =
        |url: &str| d.said().iter().any(|s| s.request.type_url == url && s.request.error_detail.is_none());
    assert!(acknowledged("type.googleapis.com/x"), "what is unknown is acknowledged");
    scene.talk();

    // It connects and says nothing.
    for url in [api::ADDRESS, api::AUTHORIZATION] {
        d.silence(url, true);
    }
    scene.plane.cut();
    scene.line_with(&["which has said nothing of Address and Authorization", "ago is in force: 3 addresses"]);
    let age = || scene.status()["controlPlane"]["stateAgeS"].as_u64().unwrap();
    until("the state becomes older", || (age() >= 1).then_some(()));
    assert_eq!(scene.readiness().unwrap().0, 200, "ready it stays");
    scene.talk();
    for url in [api::ADDRESS, api::AUTHORIZATION] {
        d.silence(url, false);
    }
    // It answers late.
    d.delay(Duration::from_millis(700));
    scene.plane.cut();
    scene.line_with(&["which has said nothing of"]);
    scene.talk();
    in_step();
    let after = scene.memory();
    assert!(after < before + 64, "{before} MiB before, {after} MiB after");
    assert!(!scene.node.log("proxy").contains("panicked"));
}

#[test]
fn a_push_of_two_hundred_mebibytes_holds_up_nothing() {
    let scene = Scene::new("xds-huge");
    let before = scene.memory();
    // Few workloads with long lists, so that what is decoded is as large as what is kept is small.
    let filler = "x".repeat(8 * 1024);
    let mut resources: Vec<Resource> = Vec::new();
    for i in 0..24_000 {
        let mut workload = pod(&format!("filler-{i}"), &[]);
        workload.uid = format!("filler-{i}");
        let mut resource = workload_resource(workload);
        // A field that nobody knows, as a later version may have.
        let value = &mut resource.resource.as_mut().unwrap().value;
        let mut bytes = value.to_vec();
        bytes.extend(unknown_field(filler.as_bytes()));
        *value = bytes.into();
        resource.version = "1".to_owned();
        resources.push(resource);
    }
    let response = DeltaResponse { type_url: api::ADDRESS.to_owned(), resources, ..DeltaResponse::default() };
    let size = prost::Message::encoded_len(&response) >> 20;
    assert!((180..200).contains(&size), "{size} MiB");
    scene.plane.discovery.send(response);
    let patience = Instant::now() + Duration::from_secs(60);
    let mut most = before;
    let slowest = scene.talk_until(|| {
        most = most.max(scene.memory());
        assert!(Instant::now() < patience, "the push is never applied");
        scene.line().contains("24003 addresses")
    });
    assert!(slowest < Duration::from_secs(2), "a new connection took {slowest:?}");
    assert!(most < before + 1024, "{before} MiB before, {most} MiB at most");
    println!("slowest {slowest:?}, {before} MiB before, {most} MiB at most");
    // Larger ones are not taken, and do no harm.
    let streams = scene.plane.discovery.heads().len();
    scene.plane.discovery.send_raw((200 << 20) + 1, vec![0u8; 1000]);
    until("another stream", || (scene.plane.discovery.heads().len() > streams).then_some(()));
    scene.talk();
}

/// Field 200 with these bytes.
fn unknown_field(bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(200, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend_from_slice(bytes);
    field
}

#[test]
fn a_mesh_older_than_its_limit_lets_nothing_new_out_or_in() {
    let scene = Scene::with("state-age", &[("UNDERPASS_MAX_STATE_AGE", "1s")]);
    let mut open = scene.try_talk(Scene::destinations()[0]).unwrap();
    scene.plane.away(true);
    let line = until("the limit has passed", || {
        let line = scene.status()["controlPlane"]["line"].as_str()?.to_owned();
        line.contains("UP-CONTROL-011").then_some(line)
    });
    assert!(line.contains("that is more than 1s, so connections are refused"), "{line}");
    Scene::destinations().into_iter().for_each(|to| scene.refused(to));
    scene.log_with(&["UP-CONTROL-011", "direction=\"outbound\""]);
    let around = |to: SocketAddr| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(0x539)?; // as the proxy's own, which leave the pod as they are
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(&to.into())?;
        say(&mut socket.into())
    };
    assert!(scene.wire.pod.run(|| around(Scene::destinations()[0])).unwrap().is_err());
    scene.log_with(&["UP-CONTROL-011", "direction=\"inbound\""]);
    say(&mut open).unwrap(); // what is open goes on
    scene.plane.away(false);
    until("connections are accepted", || scene.try_talk(Scene::destinations()[0]).ok());
    scene.talk();
}

/// A thousand updates a second, in pushes of fifty, over five thousand workloads.
#[test]
fn a_mesh_that_changes_all_the_time_stops_no_traffic_and_is_followed() {
    let scene = Scene::new("xds-churn");
    let other = |i: usize, revision: usize| {
        let ip = [10, 90, u8::try_from(i / 250).unwrap(), u8::try_from(i % 250).unwrap()].into();
        workload_resource(Workload { canonical_revision: revision.to_string(), ..pod(&format!("other-{i}"), &[ip]) })
    };
    let d = &scene.plane.discovery;
    d.set(api::ADDRESS, (0..5_000).map(|i| other(i, 0)));
    scene.line_with(&["in step with", "5003 addresses"]);
    let before = scene.memory();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let (began, mut revision) = (Instant::now(), 0);
            while began.elapsed() < Duration::from_secs(8) {
                revision += 1;
                let first = revision * 50 % 5_000;
                d.set(api::ADDRESS, (first..first + 50).map(|i| other(i, revision)));
                // Policies and the pods' own workloads change, too, and come to the same.
                d.set(api::AUTHORIZATION, [policy_resource(deny("elsewhere", &format!("nobody-{revision}")))]);
                let due = Duration::from_millis(50) * u32::try_from(revision).unwrap();
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            d.set(api::ADDRESS, (0..5_000).map(|i| other(i, 1_000_000)));
            over.store(true, Ordering::Relaxed);
            revision
        });
        scene.talk_until(|| over.load(Ordering::Relaxed));
        assert!(churn.join().unwrap() > 100, "the churn was slow");
    });
    until("the last change is in force", || {
        let dump = scene.node.get("127.0.0.1:15000", "/config_dump").ok()?.1;
        let dump: Value = serde_json::from_str(&dump).ok()?;
        let workloads = dump["workloads"].as_array()?;
        (workloads.iter().filter(|w| w["canonicalRevision"] == "1000000").count() == 5_000).then_some(())
    });
    assert_eq!(d.refusals(), [] as [&str; 0]);
    let after = scene.memory();
    assert!(after < before + 64, "{before} MiB before, {after} MiB after");
}

/// Whatever is refused is sent again at once, as by a control plane that does not listen.
#[test]
fn a_control_plane_that_insists_on_what_is_refused_costs_little() {
    let scene = Scene::new("xds-insists");
    let d = &scene.plane.discovery;
    let again = || d.set(api::AUTHORIZATION, [garbage(api::AUTHORIZATION, "default/nonsense")]);
    again();
    until("it is refused", || (!d.refusals().is_empty()).then_some(()));
    let before = scene.memory();
    let mut sent = 1;
    scene.talk_until(|| {
        if d.refusals().len() >= sent {
            again();
            sent += 1;
        }
        sent > 500
    });
    scene.line_with(&["default/nonsense"]);
    let rejected = scene.status()["controlPlane"]["rejected"].clone();
    assert_eq!(rejected.as_object().unwrap().len(), 1, "{rejected}");
    let after = scene.memory();
    assert!(after < before + 32, "{before} MiB before, {after} MiB after");
    let lines = scene.node.log("proxy").lines().filter(|l| l.contains("default/nonsense")).count();
    assert!(lines <= sent, "{lines} lines for {sent} refusals");
    d.remove(api::AUTHORIZATION, &["default/nonsense"]);
    until("nothing is rejected any more", || {
        scene.status()["controlPlane"]["rejected"].as_object()?.is_empty().then_some(())
    });
    scene.talk();
}

#[test]
fn a_control_plane_that_is_away_is_tried_later_and_later() {
    let scene = Scene::new("xds-backoff");
    scene.plane.away(true);
    let knocks = await_within(60, "nine are tried", || {
        let knocks = scene.plane.knocks();
        (knocks.len() >= 9).then_some(knocks)
    });
    let waits: Vec<_> = knocks.windows(2).take(8).map(|w| w[1] - w[0]).collect();
    for (wait, expected) in waits.iter().zip([10, 20, 40, 80, 160, 320, 640, 1280]) {
        assert!(*wait >= Duration::from_millis(expected), "{waits:?}");
    }
    scene.talk();
    scene.plane.away(false);
    scene.line_with(&["in step with"]);
}

#[test]
fn a_control_plane_that_is_away_for_a_minute_is_followed_again() {
    let scene = Scene::new("xds-minute");
    scene.talk();
    scene.plane.away(true);
    scene.plane.cut();
    let gone = Instant::now();
    scene.talk_until(|| {
        std::thread::sleep(Duration::from_millis(200));
        gone.elapsed() > Duration::from_secs(60)
    });
    let age = scene.status()["controlPlane"]["stateAgeS"].as_u64().unwrap();
    assert!((58..120).contains(&age), "{age}");
    scene.line_with(&["no connection to", "ago is in force: 3 addresses"]);
    // It has changed meanwhile.
    scene
        .plane
        .discovery
        .set(api::AUTHORIZATION, [policy_resource(deny("no-client", "cluster.local/ns/default/sa/client"))]);
    scene.plane.away(false);
    await_within(30, "it is followed", || scene.line().contains("in step with").then_some(()));
    scene.refused(Scene::destinations()[0]);
}
