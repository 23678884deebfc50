//! The demo of `scripts/kube demo`.

use underpass_tests::cluster::Families;
use underpass_tests::folder;
use underpass_tests::kube::{Kube, demo, missing};
use underpass_tests::skip::skip;

#[test]
fn every_step_of_the_cluster_demo_succeeds() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::exclusive();
    if kube.has_underpass() {
        kube.uninstall_underpass();
    }
    assert_all_steps_succeed(&kube);
}

#[test]
fn every_step_of_the_cluster_demo_succeeds_with_ipv6_only() {
    with_one_family("the_story_is_as_promised_with_ipv6_alone", Families::V6);
}

#[test]
fn every_step_of_the_cluster_demo_succeeds_with_ipv4_only() {
    with_one_family("the_story_is_as_promised_with_ipv4_alone", Families::V4);
}

/// Runs the demo on a cluster with addresses of only one family.
fn with_one_family(test: &str, families: Families) {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let folder = folder::until_exit(test);
    let kube = Kube::start(&folder, families, &mut |_| ());
    assert_all_steps_succeed(&kube);
}

#[track_caller]
fn assert_all_steps_succeed(kube: &Kube) {
    let mut reports = Vec::new();
    let ok = demo::run(kube, &mut |step| {
        reports.push(format!("{} {}\n{}", step.ok, step.step, step.evidence))
    });
    assert!(ok, "{}", reports.join("\n"));
}
