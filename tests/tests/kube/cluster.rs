//! The cluster without Underpass.

#![allow(clippy::disallowed_types)] // one cluster runs in another process, which is killed

use std::fs;
use std::path::Path;

use serde_json::Value;
use underpass_tests::kube::app::App;
use underpass_tests::kube::{Kube, await_within, missing, until};
use underpass_tests::skip::skip;

#[test]
fn pods_on_two_nodes_reach_each_other_and_their_services() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::shared();
    kube.namespace("plain", false);
    let app = |name, node| App {
        namespace: "plain",
        name,
        node: Some(node),
        labels: Value::Null,
    };
    kube.launch(&[app("one", "node-1"), app("two", "node-2")]);
    let [v4, v6] = kube.service("plain", "two");
    let addresses = kube.addresses("plain", "two");
    let output = kube.await_answer(
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
        assert!(output.contains(&format!("two sees {ip}")), "{output}");
    }
    assert!(kube.run("istioctl", &["version"]).contains("version"));
    kube.kubectl(&["delete", "namespace", "plain", "--wait=false"]);
}

/// A cluster whose process is killed.
#[test]
fn a_killed_cluster_leaves_nothing() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let _alone = Kube::exclusive(); // two clusters at once overload small machines
    let folder = underpass_tests::folder::folder("killed");
    let mut keeper =
        std::process::Command::new(underpass_tests::binaries::binary("underpass-kube"));
    keeper
        .arg("keep")
        .env("TMPDIR", &folder)
        .stdout(fs::File::create(folder.join("output")).unwrap());
    let mut keeper = netns::process::die_with_parent(&mut keeper)
        .spawn()
        .unwrap(); // also when the test fails
    await_within(240, "the cluster is up", || {
        fs::read_to_string(folder.join("output"))
            .unwrap()
            .ends_with("ready\n")
            .then_some(())
    });
    let name = format!("underpass-test-{}-kube", keeper.id());
    let left = || leftovers(&name, &folder);
    assert!(left().len() > 10, "{:?}", left());
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    until("nothing is left", || left().is_empty().then_some(()));
    fs::remove_dir_all(folder).unwrap();
}

/// Processes, control groups, mounts and the folder of a cluster.
fn leftovers(name: &str, parent: &Path) -> Vec<String> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()) {
        let texts = ["cmdline", "cgroup", "environ"].map(|file| read(&process.join(file)));
        if process.join("cmdline").exists() && texts.iter().any(|t| t.contains(name)) {
            found.push(format!(
                "{}: {}",
                process.display(),
                texts[0].replace('\0', " ")
            ));
        }
    }
    found.extend(
        read(Path::new("/proc/self/mountinfo"))
            .lines()
            .filter(|l| l.contains(name))
            .map(str::to_owned),
    );
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let groups = fs::read_dir(hierarchy.path())
            .into_iter()
            .flatten()
            .flatten();
        found.extend(
            groups
                .filter(|g| g.file_name().to_string_lossy().starts_with(name))
                .map(|g| g.path().display().to_string()),
        );
    }
    found.extend(
        parent
            .join(name)
            .exists()
            .then(|| parent.join(name).display().to_string()),
    );
    found
}
