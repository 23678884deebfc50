//! The story that `scripts/kube demo` tells.

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
    let mut told = Vec::new();
    let ok = story::play(&kube, &mut |step| told.push(format!("{} {}\n{}", step.ok, step.step, step.evidence)));
    assert!(ok, "{}", told.join("\n"));
}
