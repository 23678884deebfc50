//! Waypoints that are restarted while requests pass through them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netns::NetNs;
use underpass_tests::kube::gateways::WaypointFor;
use underpass_tests::kube::http::{GET, request};
use underpass_tests::kube::until;

use crate::shop::{Shop, through_envoy_from};

/// Sends requests on new connections while `work` runs; returns how many, and which failed.
fn under_load(from: &NetNs, to: &[String], work: impl FnOnce()) -> (usize, Vec<String>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut count, mut failures) = (0, Vec::new());
            for to in to.iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                count += 1;
                match request(from, to, &GET) {
                    Ok(response) if response.status == 200 => {}
                    other => failures.push(format!("{to}: {other:?}")),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            (count, failures)
        });
        work();
        over.store(true, Ordering::Relaxed);
        load.join().unwrap()
    })
}

#[test]
fn a_waypoint_is_restarted_under_load() {
    let Some(shop) = Shop::open("restarted") else {
        return;
    };
    shop.waypoint("waypoint", WaypointFor::Service);
    shop.label("service/web-v1", "istio.io/use-waypoint=waypoint");
    let (client, web) = (shop.netns("client"), shop.addresses_of("web-v1"));
    shop.await_response(
        "the waypoint",
        &client,
        &web,
        &GET,
        through_envoy_from("web-v1"),
    );
    let before = shop.kube.await_gateway(shop.namespace, "waypoint");
    let (count, failures) = under_load(&client, &web, || {
        let namespace = shop.namespace;
        let waypoint = "deployment/waypoint";
        shop.kube
            .kubectl(&["rollout", "restart", "-n", namespace, waypoint]);
        let wait = [
            "rollout",
            "status",
            "-n",
            namespace,
            waypoint,
            "--timeout=90s",
        ];
        shop.kube.kubectl(&wait);
        until("the last pod has exited", || {
            shop.kube.pod(namespace, &before).is_none().then_some(())
        });
    });
    assert!(failures.is_empty(), "of {count}: {failures:#?}");
    assert!(count > 100, "{count}");
}
