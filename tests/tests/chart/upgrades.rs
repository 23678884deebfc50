//! Upgrades from the previous chart, on a real API server.

use std::fs;
use std::process::Command;

use serde_json::Value;
use underpass_tests::binaries::control_plane_files;
use underpass_tests::cluster::{Kubernetes, binary};
use underpass_tests::folder;
use underpass_tests::skip::skip;

use crate::helm::{self, NAMESPACE};
use crate::platforms::{platforms, value};

/// `deploy/manifests/underpass.yaml` of the previous release, or before the first one, as it was
/// before platforms had permissions.
const PREVIOUS: &str = include_str!("previous.yaml");
const RELEASE: &str = "underpass";

/// The API server rejects changes of some fields, such as selectors and the roles of bindings.
#[test]
fn every_platform_upgrades_from_the_previous_chart_and_rolls_back() {
    let parts = [
        "bin/helm",
        "bin/etcd",
        "bin/kube-apiserver",
        "bin/kube-controller-manager",
    ];
    if let Err(why) = control_plane_files(parts) {
        return skip(&why);
    }
    let folder = folder::until_exit("upgrades");
    let kubernetes = Kubernetes::start(&folder, &[]);
    let kubeconfig = kubernetes.kubeconfig("helm", "admin");
    let helm = |arguments: &[&str]| {
        let mut command = Command::new(binary("helm"));
        command
            .args(arguments)
            .args(["--namespace", NAMESPACE, "--kubeconfig", &kubeconfig])
            .env("HOME", &folder)
            .env("HELM_MAX_HISTORY", "0"); // the first revision must remain
        netns::process::in_netns(&mut command, &kubernetes.netns).unwrap();
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let previous = folder.join("previous");
    fs::create_dir_all(previous.join("templates")).unwrap();
    fs::write(
        previous.join("Chart.yaml"),
        "apiVersion: v2\nname: underpass\nversion: 0.0.0\n",
    )
    .unwrap();
    fs::write(previous.join("templates/all.yaml"), PREVIOUS).unwrap();
    let (previous, current) = (
        previous.display().to_string(),
        helm::repository()
            .join("deploy/helm/underpass")
            .display()
            .to_string(),
    );
    helm(&["install", RELEASE, &previous, "--create-namespace"]);
    for platform in platforms() {
        let optional = "global.networkPolicy.enabled=true";
        let platform_value = value(&platform);
        let notes = helm(&[
            "upgrade",
            RELEASE,
            &current,
            "--set-json",
            &platform_value,
            "--set",
            optional,
        ]);
        let is_privileged = ["openshift", "talos"].contains(&&*platform);
        assert_eq!(
            notes.contains("pod-security.kubernetes.io/enforce=privileged"),
            is_privileged,
            "{platform}: {notes}"
        );
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/underpass-cni-node");
        let probe = || {
            let set: Value = kubernetes.api.get(&path).unwrap();
            set["spec"]["template"]["spec"]["containers"][0]["livenessProbe"].clone()
        };
        assert!(probe().is_object(), "{platform}");
        helm(&["rollback", RELEASE, "1"]);
        assert!(probe().is_null(), "{platform}");
    }
}
