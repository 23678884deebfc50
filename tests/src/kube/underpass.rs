//! Underpass on a cluster, installed by its chart.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::images::UNDERPASS;
use super::{Kube, images, until};
use crate::binaries::binary;
use crate::cluster::istiod::NAMESPACE;

/// The name of the release.
pub const RELEASE: &str = "underpass";
/// The DaemonSet of the agents.
pub const AGENTS: &str = "underpass-cni-node";
/// The DaemonSet of the proxies.
pub const PROXIES: &str = "ztunnel";

/// The folder of the chart.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/underpass")
}

impl Kube {
    /// Imports an image of the programs of this build on every node.
    pub fn import_underpass(&self) {
        let archive = images::underpass(&self.folder());
        self.nodes.iter().for_each(|node| node.import(&archive));
    }

    /// Installs or upgrades Underpass and waits until it is ready.
    #[track_caller]
    pub fn install_underpass(&self, values: &[&str]) -> String {
        let chart = chart();
        let image = ["cni.image", "ztunnel.image"].map(|of| format!("{of}={UNDERPASS}"));
        let mut arguments = vec![
            "upgrade",
            "--install",
            RELEASE,
            chart.to_str().unwrap(),
            "--namespace",
            NAMESPACE,
        ];
        arguments.extend([
            "--wait",
            "--timeout",
            "120s",
            "--set",
            &image[0],
            "--set",
            &image[1],
        ]);
        arguments.extend(["--set", "global.imagePullPolicy=Never"]);
        values
            .iter()
            .for_each(|value| arguments.extend(["--set", value]));
        self.run("helm", &arguments)
    }

    /// Whether Underpass is installed.
    pub fn has_underpass(&self) -> bool {
        self.get(&format!(
            "/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{AGENTS}"
        ))
        .is_some()
    }

    /// The pods of a namespace in the status of a node's agent: name, and state of verification or
    /// else of enrolment.
    pub fn states(&self, node: &str, namespace: &str) -> Vec<(String, String)> {
        let (_, output) = self.underpass(node, &["status", "--json"]);
        let status: Value = serde_json::from_str(&output).unwrap_or_default();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let of = pods.iter().filter(|p| p["namespace"] == *namespace);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        of.map(|p| {
            (
                text(&p["name"]),
                text(p["verification"].get("state").unwrap_or(&p["state"])),
            )
        })
        .collect()
    }

    /// Uninstalls Underpass.
    #[track_caller]
    pub fn uninstall_underpass(&self) -> String {
        self.run(
            "helm",
            &[
                "uninstall",
                RELEASE,
                "--namespace",
                NAMESPACE,
                "--wait",
                "--timeout",
                "120s",
            ],
        )
    }

    /// The name of the ready pod of Underpass's DaemonSet on a node, if there is one.
    pub fn ready_pod_of(&self, daemon_set: &str, node: &str) -> Option<String> {
        let label = if daemon_set == AGENTS {
            "k8s-app"
        } else {
            "app"
        };
        let path = format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={label}%3D{daemon_set}&\
             fieldSelector=spec.nodeName%3D{node}"
        );
        let list = self.get(&path)?;
        let ready = |p: &&Value| {
            super::condition(p, "Ready") && p["metadata"]["deletionTimestamp"].is_null()
        };
        Some(
            list["items"].as_array()?.iter().find(ready)?["metadata"]["name"]
                .as_str()?
                .to_owned(),
        )
    }

    /// Runs the CLI in a node's agent pod; returns whether it succeeded, and its output.
    pub fn underpass(&self, node: &str, arguments: &[&str]) -> (bool, String) {
        let pod = until("an agent is ready", || self.ready_pod_of(AGENTS, node));
        let mut command = self.command("kubectl");
        command
            .args(["exec", "-n", NAMESPACE, &pod, "--", "underpass"])
            .args(arguments);
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Runs the CLI beside the API server with a kubeconfig; returns exit code, output and errors.
    pub fn with_kubeconfig(&self, kubeconfig: &str, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(binary("underpass"));
        command
            .env_clear()
            .args(arguments)
            .args(["--kubeconfig", kubeconfig]);
        netns::process::in_netns(&mut command, &self.kubernetes.netns).unwrap();
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// Whether a pod has the annotation of enrolled pods.
    pub fn enrolled(&self, namespace: &str, pod: &str) -> bool {
        let pod = self.pod(namespace, pod);
        pod.is_some_and(|p| {
            p["metadata"]["annotations"][istio::annotation::REDIRECTION] == "enabled"
        })
    }

    /// Waits until a pod has the annotation, or no longer has it.
    #[track_caller]
    pub fn await_enrolled(&self, namespace: &str, pod: &str, wanted: bool) {
        until(&format!("{namespace}/{pod}: enrolled is {wanted}"), || {
            (self.enrolled(namespace, pod) == wanted).then_some(())
        });
    }

    /// The log of the proxy on a node.
    pub fn proxy_log(&self, node: &str) -> String {
        let pod = until("a proxy is ready", || self.ready_pod_of(PROXIES, node));
        self.kubectl(&["logs", "-n", NAMESPACE, &pod])
    }

    /// Waits until the rollout of a DaemonSet is complete.
    #[track_caller]
    pub fn await_rollout(&self, daemon_set: &str) {
        self.kubectl(&[
            "rollout",
            "status",
            "-n",
            NAMESPACE,
            &format!("daemonset/{daemon_set}"),
            "--timeout=90s",
        ]);
    }
}
