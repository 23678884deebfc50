//! The real helm, on the chart of this repository.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use underpass_tests::binaries::control_plane_files;

/// The Kubernetes version for which the chart is rendered.
const KUBERNETES: &str = "1.34.0";
/// The namespace of the release.
pub const NAMESPACE: &str = "istio-system";

/// What this machine lacks to run helm.
pub fn missing() -> Option<String> {
    control_plane_files(["bin/helm"]).err()
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `helm lint` or `helm template` with values such as `cni.capture=nat`.
pub fn run(verb: &str, more: &[&str], values: &[&str]) -> Output {
    let [helm] = control_plane_files(["bin/helm"]).unwrap();
    let mut command = Command::new(helm);
    command
        .arg(verb)
        .arg(repository().join("deploy/helm/underpass"))
        .args(["--namespace", NAMESPACE])
        .args(more);
    if !more.contains(&"--kube-version") {
        command.args(["--kube-version", KUBERNETES]);
    }
    for value in values {
        command.args(["--set-json", value]);
    }
    command.output().unwrap()
}

/// The rendered chart as text.
#[track_caller]
pub fn rendered(more: &[&str], values: &[&str]) -> String {
    let output = run("template", more, values);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The objects of the rendered chart.
#[track_caller]
pub fn objects(more: &[&str], values: &[&str]) -> Vec<Value> {
    let text = rendered(more, values);
    text.split("\n---\n")
        .filter(|d| d.contains("kind:"))
        .map(|d| serde_saphyr::from_str(d).unwrap())
        .collect()
}

/// The object with this kind and name.
#[track_caller]
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
    objects
        .iter()
        .find(is)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The pod spec of a DaemonSet.
#[track_caller]
pub fn pod<'a>(objects: &'a [Value], daemon_set: &str) -> &'a Value {
    &object(objects, "DaemonSet", daemon_set)["spec"]["template"]["spec"]
}

/// The value of an environment variable of a pod's container.
pub fn variable<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let all = pod["containers"][0]["env"].as_array().unwrap();
    let mut named = all.iter().filter(|v| v["name"] == name);
    let value = named.next()?["value"].as_str();
    assert!(named.next().is_none(), "{name} is set twice");
    value
}
