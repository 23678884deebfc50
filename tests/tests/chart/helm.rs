//! The real helm, on the chart of this repository.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use underpass_tests::binaries::control_plane_files;

/// Whose API the chart is rendered for.
const KUBERNETES: &str = "1.34.0";
/// Where it is installed.
pub const NAMESPACE: &str = "istio-system";

/// What is missing for it on this machine.
pub fn missing() -> Option<String> {
    control_plane_files(["bin/helm"]).err()
}

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs helm's `lint` or `template` with values, each such as `cni.capture=nat`.
pub fn run(verb: &str, more: &[&str], values: &[&str]) -> Output {
    let [helm] = control_plane_files(["bin/helm"]).unwrap();
    let mut command = Command::new(helm);
    command.arg(verb).arg(repository().join("deploy/helm/underpass")).args(["--namespace", NAMESPACE]).args(more);
    if !more.contains(&"--kube-version") {
        command.args(["--kube-version", KUBERNETES]);
    }
    for value in values {
        command.args(["--set-json", value]);
    }
    command.output().unwrap()
}

/// What the chart comes to, as text.
#[track_caller]
pub fn printed(more: &[&str], values: &[&str]) -> String {
    let output = run("template", more, values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The objects that the chart comes to.
#[track_caller]
pub fn objects(more: &[&str], values: &[&str]) -> Vec<Value> {
    let text = printed(more, values);
    text.split("\n---\n").filter(|d| d.contains("kind:")).map(|d| serde_saphyr::from_str(d).unwrap()).collect()
}

/// The one object of that kind and name.
#[track_caller]
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
    objects.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The pod of a DaemonSet.
#[track_caller]
pub fn pod<'a>(objects: &'a [Value], daemon_set: &str) -> &'a Value {
    &object(objects, "DaemonSet", daemon_set)["spec"]["template"]["spec"]
}

/// The value of a variable of the environment of a pod's container.
pub fn variable<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let all = pod["containers"][0]["env"].as_array().unwrap();
    let mut named = all.iter().filter(|v| v["name"] == name);
    let value = named.next()?["value"].as_str();
    assert!(named.next().is_none(), "{name} is there twice");
    value
}
