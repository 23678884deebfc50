//! What the control plane sends about pods of the same name, in any order, or in a form that this
//! version understands only in part: nothing opens, nothing is cut, and the reason is reported.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use api::authorization::{Action, Authorization, Scope};
use api::discovery::Resource;
use api::workload::Workload;
use underpass_tests::control_plane::resources::{
    deny, endpoint, garbage, pod, policy_resource, workload_resource,
};
use underpass_tests::control_plane::{CaFault, ControlPlaneSetup, echo};
use underpass_tests::sandbox::until;
use underpass_tests::wire::{PEER4, PEER6};

const CLIENT: &str = "cluster.local/ns/default/sa/client";
/// A new connection is denied (010), or one that was open for a moment (011).
const DENIED: &str = "UP-PROXY-01";
const SERVER_UID: &str = "Kubernetes//Pod/default/server";

/// A policy for the workloads that list it, which denies the client.
fn selected(name: &str) -> Authorization {
    let mut policy = deny(name, CLIENT);
    policy.scope = Scope::WorkloadSelector.into();
    policy
}

/// The server, which lists these policies.
fn server(policies: &[&str]) -> Workload {
    let mut server = endpoint(pod("server", &[PEER4, PEER6]));
    server.authorization_policies = policies.iter().map(|p| (*p).to_owned()).collect();
    server
}

#[test]
fn a_pod_of_another_cluster_with_the_same_name_changes_nothing() {
    let setup = ControlPlaneSetup::new("doubt-name");
    let discovery = &setup.plane.discovery;
    let mut remote = pod("server", &["10.99.0.2".parse().unwrap()]);
    remote.uid = "other//Pod/default/server".to_owned();
    remote.cluster_id = "other".to_owned();
    remote.trust_domain = "other.domain".to_owned();
    remote.authorization_policies = vec!["default/no-remote".to_owned()];
    let mut moved = pod("server", &["10.99.0.3".parse().unwrap()]);
    moved.uid = "Kubernetes//Pod/default/server-of-another-node".to_owned();
    moved.node = "another".to_owned();
    discovery.set(api::AUTHORIZATION, [policy_resource(selected("no-remote"))]);
    // It arrives last, and refers to a policy that denies the client.
    discovery.set(
        api::ADDRESS,
        [workload_resource(remote), workload_resource(moved)],
    );
    setup.await_addresses(5);
    let mut open = setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap();
    setup.exchange_with_all();
    let identities = setup.plane.certificates.identities();
    assert!(
        identities.iter().all(|i| i.contains("cluster.local")),
        "{identities:?}"
    );
    // A policy of the local pod is enforced.
    let local = server(&["default/no-local"]);
    discovery.set(api::AUTHORIZATION, [policy_resource(selected("no-local"))]);
    discovery.set(api::ADDRESS, [workload_resource(local)]);
    setup.await_refused(ControlPlaneSetup::destinations()[0]);
    assert!(
        echo(&mut open).is_err(),
        "an open connection is still served"
    );
    setup.log_with(&[DENIED, "default/no-local"]);
    // Without the local pod, those of the same name are named in the reason.
    discovery.remove(api::ADDRESS, &[SERVER_UID]);
    setup.await_addresses(4);
    setup
        .try_exchange(ControlPlaneSetup::destinations()[0])
        .unwrap_err();
}

#[test]
fn a_new_policy_cuts_no_connection_that_it_allows() {
    let setup = ControlPlaneSetup::new("doubt-order");
    let discovery = &setup.plane.discovery;
    let to = ControlPlaneSetup::destinations()[0];
    let mut open = setup.try_exchange(to).unwrap();
    // As istiod pushes a new policy with a selector: first the workload that lists it.
    discovery.set(
        api::ADDRESS,
        [workload_resource(server(&["default/client-only"]))],
    );
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(700) {
        echo(&mut open).unwrap();
        setup.try_exchange(to).unwrap();
    }
    let mut policy = selected("client-only");
    policy.action = Action::Allow.into();
    discovery.set(api::AUTHORIZATION, [policy_resource(policy)]);
    setup.await_plane("the policy is known", |p| p["policies"] == 1);
    echo(&mut open).unwrap();
    setup.try_exchange(to).unwrap();
    // The policy changes to one that denies, and is deleted, workload first.
    discovery.set(
        api::AUTHORIZATION,
        [policy_resource(selected("client-only"))],
    );
    setup.await_refused(to);
    assert!(
        echo(&mut open).is_err(),
        "an open connection is still served"
    );
    discovery.set(api::ADDRESS, [workload_resource(server(&[]))]);
    discovery.remove(api::AUTHORIZATION, &["default/client-only"]);
    until("it is allowed again", || setup.try_exchange(to).ok());
    // One that never arrives denies in the end, with its name.
    discovery.set(api::ADDRESS, [workload_resource(server(&["default/lost"]))]);
    setup.await_refused(to);
    setup.log_with(&[DENIED, "unknown policy default/lost"]);
}

#[test]
fn what_is_not_understood_opens_nothing_and_is_named() {
    let setup = ControlPlaneSetup::new("doubt-unknown");
    let discovery = &setup.plane.discovery;
    let to = ControlPlaneSetup::destinations()[0];
    let allowed_again = || until("it is allowed again", || setup.try_exchange(to).ok());
    let rejects = |name: &'static str| {
        setup.await_plane("it is reported", |p| p["rejected"].get(name).is_some())
    };
    // A policy of which nothing is understood denies.
    discovery.set(
        api::AUTHORIZATION,
        [garbage(api::AUTHORIZATION, "default/garbage")],
    );
    setup.await_refused(to);
    rejects("default/garbage");
    setup.log_with(&[DENIED, "default/garbage"]);
    discovery.remove(api::AUTHORIZATION, &["default/garbage"]);
    allowed_again();
    // A part that is not understood leaves the rest active.
    let mut partly = deny("partly", "cluster.local/ns/default/sa/another");
    let condition = &mut partly.rules[0].clauses[0].matches[0];
    condition.destination_ports = vec![70_000];
    condition.principals.clear();
    discovery.set(api::AUTHORIZATION, [policy_resource(partly.clone())]);
    setup.await_refused(to);
    rejects("default/partly");
    setup.log_with(&[DENIED, "default/partly (rule 1)", "destination_ports"]);
    let condition = &mut partly.rules[0].clauses[0].matches[0];
    condition.source_ips = vec![api::authorization::Network {
        address: vec![192, 0, 2, 1].into(),
        length: 32,
    }];
    discovery.set(api::AUTHORIZATION, [policy_resource(partly)]);
    allowed_again();
    // A workload with a new kind of tunnel is not reached, least of all in plain text.
    let mut new = server(&[]);
    new.tunnel_protocol = 7;
    discovery.set(api::ADDRESS, [workload_resource(new)]);
    setup.await_refused(to);
    rejects("Kubernetes//Pod/default/server");
    setup.log_with(&["does not understand Kubernetes//Pod/default/server"]);
    discovery.set(api::ADDRESS, [workload_resource(server(&[]))]);
    allowed_again();
    // Nor is an address of a resource that cannot be used at all.
    let odd = Resource {
        aliases: vec!["/10.99.0.9".to_owned()],
        ..garbage(api::ADDRESS, "default/odd.example")
    };
    discovery.set(api::ADDRESS, [odd]);
    rejects("default/odd.example");
    setup
        .try_exchange("10.99.0.9:80".parse().unwrap())
        .unwrap_err();
    setup.log_with(&["10.99.0.9", "does not understand default/odd.example"]);
    setup.exchange_with_all();
}

#[test]
fn a_root_that_cannot_be_read_does_not_disable_the_others() {
    let mut setup = ControlPlaneSetup::without_pods("doubt-roots");
    let fault = Some(CaFault::UnreadableRoots);
    setup.plane.certificates.set_fault(fault);
    setup.publish_pods();
    setup.start_proxy(&[]);
    setup.await_ready();
    setup.enrol("client");
    setup.enrol("server");
    setup.exchange_with_all();
    setup.log_with(&["ignoring", "root certificate"]);
    let trust = setup.status()["trust"].clone();
    let roots = trust["roots"].as_array().unwrap();
    assert_eq!(roots.len(), 1, "{trust}");
    assert_eq!(roots[0]["subject"], "O=the mesh's root", "{trust}");
    assert_eq!(roots[0]["identities"], 2, "{trust}");
    assert!(roots[0]["expiresInS"].as_u64() > Some(0), "{trust}");
    assert!(!trust["ignored"].as_array().unwrap().is_empty(), "{trust}");
}
