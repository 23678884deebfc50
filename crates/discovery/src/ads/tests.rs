//! Tests of the state machine.

use api::discovery::{DeltaResponse, Resource};
use prost::Message;

use super::*;

fn node() -> Node {
    Node {
        id: "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
        metadata: None,
    }
}

fn response(
    kind: ResourceType,
    nonce: &str,
    names: &[(&str, &str)],
    removed: &[&str],
) -> DeltaResponse {
    DeltaResponse {
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources: names
            .iter()
            .map(|(name, version)| Resource {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                ..Resource::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
        ..DeltaResponse::default()
    }
}

/// Applies a response and rejects the resources in `bad`.
fn apply(ads: &mut Ads, response: DeltaResponse, bad: &[&str]) -> DeltaRequest {
    let (rejected, accepted): (Vec<_>, Vec<_>) = response
        .resources
        .into_iter()
        .partition(|r| bad.contains(&r.name.as_str()));
    let accepted = accepted.into_iter().map(|r| (r.name, r.version)).collect();
    let rejected: Vec<_> = rejected
        .into_iter()
        .map(|r| RejectedResource {
            name: r.name,
            reason: "bad".to_owned(),
            is_used: false,
        })
        .collect();
    ads.handle_applied(&AppliedPush {
        kind: ResourceType::from_type_url(&response.type_url).unwrap(),
        nonce: response.nonce,
        accepted,
        removed: response.removed_resources,
        rejected,
        notices: Vec::new(),
    })
}

#[test]
fn first_requests_subscribe_to_both_types_and_identify_the_node() {
    let mut ads = Ads::new(node(), false);
    let first = ads.handle_connect();
    let urls: Vec<_> = first.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(urls, [api::ADDRESS, api::AUTHORIZATION]);
    for request in &first {
        assert_eq!(request.node, Some(node()));
        assert!(
            request.subscribe.is_empty() && request.unsubscribe.is_empty(),
            "an empty subscription is a wildcard"
        );
    }
    assert_eq!(ads.missing_types(), ResourceType::ALL);
}

#[test]
fn a_nack_has_the_nonce_and_names_the_rejected_resources() {
    let mut ads = Ads::new(node(), false);
    ads.handle_connect();
    let ack = apply(
        &mut ads,
        response(ResourceType::Address, "n1", &[("a", "1"), ("b", "1")], &[]),
        &[],
    );
    assert_eq!(
        (
            ack.type_url.as_str(),
            ack.response_nonce.as_str(),
            ack.error_detail
        ),
        (api::ADDRESS, "n1", None)
    );
    assert!(!ads.is_synced(), "no policies were received yet");
    let nack = apply(
        &mut ads,
        response(
            ResourceType::Address,
            "n2",
            &[("a", "2"), ("b", "2"), ("c", "1")],
            &[],
        ),
        &["b", "c"],
    );
    assert_eq!(nack.response_nonce, "n2");
    assert_eq!(nack.error_detail.unwrap().message, "b: bad; c: bad");
    // A new stream reports the accepted versions: for b, the previous one.
    let versions = ads.handle_connect()[0].initial_resource_versions.clone();
    let versions: Vec<_> = versions
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    assert_eq!(versions, [("a", "2"), ("b", "1")]);
}

#[test]
fn removed_resources_are_forgotten_and_an_unknown_type_is_acknowledged() {
    let mut ads = Ads::new(node(), false);
    ads.handle_connect();
    apply(
        &mut ads,
        response(ResourceType::Address, "1", &[("a", "1"), ("b", "1")], &[]),
        &[],
    );
    apply(
        &mut ads,
        response(ResourceType::Address, "2", &[], &["a", "never-there"]),
        &[],
    );
    apply(
        &mut ads,
        response(ResourceType::Authorization, "3", &[], &[]),
        &[],
    );
    assert!(ads.is_synced() && ads.missing_types().is_empty());
    assert_eq!(ads.count(ResourceType::Address), 1);
    assert_eq!(ResourceType::from_type_url("x"), None);
    let ack = acknowledge("x".to_owned(), "4".to_owned(), &[]);
    assert_eq!(
        (
            ack.type_url.as_str(),
            ack.response_nonce.as_str(),
            ack.error_detail
        ),
        ("x", "4", None)
    );
    ads.handle_connect();
    assert!(ads.is_synced(), "accepted resources outlive the stream");
    assert_eq!(
        ads.missing_types(),
        ResourceType::ALL,
        "they are not confirmed on the new stream yet"
    );
}

#[test]
fn on_demand_addresses_are_subscribed_again_on_a_new_stream() {
    let mut ads = Ads::new(node(), true);
    let first = ads.handle_connect();
    assert_eq!(
        (first[0].subscribe.clone(), first[0].unsubscribe.clone()),
        (vec!["*".to_owned()], vec!["*".to_owned()])
    );
    assert!(
        first[1].subscribe.is_empty() && first[1].unsubscribe.is_empty(),
        "policies keep the wildcard"
    );
    let request = ads.subscribe("net/10.0.0.1".to_owned());
    assert_eq!(
        (request.type_url.as_str(), request.subscribe.clone()),
        (api::ADDRESS, vec!["net/10.0.0.1".to_owned()])
    );
    assert_eq!(ads.subscribe("net/10.0.0.1".to_owned()), request);
    assert_eq!(ads.handle_connect()[0].subscribe, ["*", "net/10.0.0.1"]);
}

/// Applies addresses of a mesh with names as long as istiod's.
fn apply_large_mesh(ads: &mut Ads, addresses: std::ops::Range<usize>) {
    let version = |i| {
        let name = format!("Kubernetes//Pod/namespace-{:04}/workload-{i:012}", i % 100);
        (name, "2026-01-01T00:00:00Z/1".to_owned())
    };
    let accepted: Vec<_> = addresses.map(version).collect();
    for (kind, accepted) in [
        (ResourceType::Address, accepted),
        (ResourceType::Authorization, vec![]),
    ] {
        ads.handle_applied(&AppliedPush {
            kind,
            nonce: String::new(),
            accepted,
            removed: vec![],
            rejected: vec![],
            notices: vec![],
        });
    }
}

#[test]
fn requests_stay_below_istiods_limit_for_meshes_of_any_size() {
    for size in [1_000, 52_000, 200_000] {
        let mut ads = Ads::new(node(), false);
        ads.handle_connect();
        apply_large_mesh(&mut ads, 0..size);
        for request in ads.handle_connect() {
            assert!(request.encoded_len() < 4 << 20, "{size} addresses");
        }
        // Everything is sent again, but for the last ten addresses, which were removed.
        apply_large_mesh(&mut ads, 0..size - 10);
        assert_eq!(ads.awaits_confirmation(), size > 1_000, "{size} addresses");
        let removed: usize = ads.take_unconfirmed().iter().map(|(_, n)| n.len()).sum();
        let expected = if size > 1_000 { 10 } else { 0 };
        assert_eq!(removed, expected, "{size} addresses");
        assert_eq!(ads.count(ResourceType::Address), size - expected);
        assert!(!ads.awaits_confirmation());
    }
}

#[test]
fn on_demand_subscriptions_of_any_number_are_sent_in_parts() {
    let mut ads = Ads::new(node(), true);
    let name = |i| format!("network-of-a-cluster/2001:db8:1111:2222:3333:4444:5555:{i:x}");
    for i in 0..100_000 {
        ads.subscribe(name(i));
    }
    let requests = ads.handle_connect();
    assert!(requests.iter().all(|r| r.encoded_len() < 4 << 20));
    let names: usize = requests.iter().map(|r| r.subscribe.len()).sum();
    assert_eq!(names, 100_001);
    assert_eq!(ads.unsubscribe(name(1)).unwrap().unsubscribe, [name(1)]);
    assert_eq!(ads.unsubscribe(name(1)), None);
}

#[test]
fn a_server_with_a_lower_limit_gets_no_versions() {
    let mut ads = Ads::new(node(), false);
    ads.handle_connect();
    apply_large_mesh(&mut ads, 0..10);
    ads.handle_request_too_large();
    let first = ads.handle_connect();
    assert!(first.iter().all(|r| r.initial_resource_versions.is_empty()));
    assert!(!ads.awaits_confirmation(), "nothing was received yet");
    assert_eq!(ads.count(ResourceType::Address), 10, "still known");
}

#[test]
fn reasons_are_bounded() {
    let rejected: Vec<_> = (0..10_000)
        .map(|i| RejectedResource {
            name: format!("r{i}"),
            reason: "bad".to_owned(),
            is_used: false,
        })
        .collect();
    let text = reasons(&rejected);
    assert!(
        text.len() < MAX_REASONS + 50 && text.ends_with("more"),
        "{text}"
    );
}
