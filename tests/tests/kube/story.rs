//! The story that `scripts/kube demo` tells.

use underpass_tests::cluster::Families;
use underpass_tests::folder;
use underpass_tests::kube::{Kube, missing, story};
use underpass_tests::skip::skip;

#[test]
fn the_story_of_the_demo_is_as_promised() {
    if let Some(why) = missing() {
        return skip("the_story_of_the_demo_is_as_promised", &why);
    }
    let kube = Kube::alone();
    if kube.has_underpass() {
        kube.uninstall_underpass();
    }
    assert_as_promised(&kube);
}

#[test]
fn the_story_is_as_promised_with_ipv6_alone() {
    of_one_family("the_story_is_as_promised_with_ipv6_alone", Families::V6);
}

#[test]
fn the_story_is_as_promised_with_ipv4_alone() {
    of_one_family("the_story_is_as_promised_with_ipv4_alone", Families::V4);
}

/// Plays it on a cluster whose nodes, pods and services have addresses of one family, and none of the other.
fn of_one_family(test: &str, families: Families) {
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let folder = folder::until_exit(test);
    let kube = Kube::start(&folder, families, &mut |_| ());
    assert_as_promised(&kube);
}

#[track_caller]
fn assert_as_promised(kube: &Kube) {
    let mut told = Vec::new();
    let ok = story::play(kube, &mut |step| told.push(format!("{} {}\n{}", step.ok, step.step, step.evidence)));
    assert!(ok, "{}", told.join("\n"));
}
