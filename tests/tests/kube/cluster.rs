//! The cluster by itself, without Underpass.

#![allow(clippy::disallowed_types)] // one is run by a program of its own, and killed

use std::fs;
use std::path::Path;

use serde_json::Value;
use underpass_tests::kube::app::App;
use underpass_tests::kube::{Kube, await_within, missing};
use underpass_tests::skip::skip;

#[test]
fn pods_on_two_nodes_reach_each_other_and_their_services() {
    if let Some(why) = missing() {
        return skip("pods_on_two_nodes_reach_each_other_and_their_services", &why);
    }
    let kube = Kube::shared();
    kube.namespace("plain", false);
    let app = |name, node| App { namespace: "plain", name, node: Some(node), labels: Value::Null };
    kube.launch(&[app("one", "node-1"), app("two", "node-2")]);
    let [v4, v6] = kube.service("plain", "two");
    let addresses = kube.addresses("plain", "two");
    let said = kube.hear(
        "plain",
        "one",
        &[
            &v4,
            &v6,
            "two:80",
            "two.plain.svc.cluster.local:80",
            &format!("{}:8080", addresses[0]),
            &format!("[{}]:8080", addresses[1]),
        ],
    );
    for ip in kube.addresses("plain", "one") {
        assert!(said.contains(&format!("two sees {ip}")), "{said}");
    }
    assert!(kube.run("istioctl", &["version"]).contains("version"));
    kube.kubectl(&["delete", "namespace", "plain", "--wait=false"]);
}

/// A cluster is killed without a word to it.
#[test]
fn a_killed_cluster_leaves_nothing() {
    if let Some(why) = missing() {
        return skip("a_killed_cluster_leaves_nothing", &why);
    }
    let _alone = Kube::alone(); // two clusters at once are too much for small machines
    let folder = underpass_tests::folder::folder("killed");
    let mut keeper = std::process::Command::new(underpass_tests::binaries::binary("underpass-kube"));
    keeper.arg("keep").env("TMPDIR", &folder).stdout(fs::File::create(folder.join("said")).unwrap());
    let mut keeper = netns::process::die_with_parent(&mut keeper).spawn().unwrap(); // when the test fails, too
    await_within(240, "the cluster is up", || {
        fs::read_to_string(folder.join("said")).unwrap().ends_with("ready\n").then_some(())
    });
    let name = format!("underpass-test-{}-kube", keeper.id());
    let left = || traces(&name, &folder);
    assert!(left().len() > 10, "{:?}", left());
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    await_within(20, "nothing is left", || left().is_empty().then_some(()));
    fs::remove_dir_all(folder).unwrap();
}

/// Processes, control groups, mounts and the folder of a cluster.
fn traces(name: &str, parent: &Path) -> Vec<String> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()) {
        let said = ["cmdline", "cgroup", "environ"].map(|file| read(&process.join(file)));
        if process.join("cmdline").exists() && said.iter().any(|s| s.contains(name)) {
            found.push(format!("{}: {}", process.display(), said[0].replace('\0', " ")));
        }
    }
    found.extend(read(Path::new("/proc/self/mountinfo")).lines().filter(|l| l.contains(name)).map(str::to_owned));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let groups = fs::read_dir(hierarchy.path()).into_iter().flatten().flatten();
        found.extend(
            groups
                .filter(|g| g.file_name().to_string_lossy().starts_with(name))
                .map(|g| g.path().display().to_string()),
        );
    }
    found.extend(parent.join(name).exists().then(|| parent.join(name).display().to_string()));
    found
}
