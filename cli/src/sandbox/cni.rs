//! Running CNI plugins as a container runtime does: one after another, each with the result of the one before.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use netns::NetNs;
use serde_json::{Value, json};

use super::plan::Pod;

/// The network configuration of a node.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    pub(crate) bin_dir: PathBuf,
    pub(crate) conflist: Value,
}

/// The conflist of a node: the plugin that finds the wire, then Underpass.
pub(crate) fn conflist(agent_socket: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "underpass-sandbox",
        "plugins": [
            { "type": super::NET_PLUGIN },
            { "type": "underpass-cni", "agentSocket": agent_socket },
        ],
    })
}

impl Runtime {
    /// ADD of all plugins, in order; returns the last result. A failure is followed by DEL of all.
    pub(crate) fn add(&self, node: &NetNs, pod: &Pod, netns: &Path) -> anyhow::Result<Value> {
        let mut result = None;
        for plugin in self.plugins() {
            match self.call("ADD", plugin, node, pod, netns, result.as_ref()) {
                Ok(output) => result = Some(serde_json::from_slice(&output).context("a plugin's result is not JSON")?),
                Err(e) => {
                    self.del(node, pod, netns, result.as_ref());
                    return Err(e);
                }
            }
        }
        result.context("the conflist has no plugins")
    }

    /// DEL of all plugins, in reverse order.
    fn del(&self, node: &NetNs, pod: &Pod, netns: &Path, result: Option<&Value>) {
        for plugin in self.plugins().collect::<Vec<_>>().into_iter().rev() {
            if let Err(e) = self.call("DEL", plugin, node, pod, netns, result) {
                eprintln!("DEL of {}/{}: {e:#}", pod.namespace, pod.name);
            }
        }
    }

    fn plugins(&self) -> impl Iterator<Item = &Value> {
        self.conflist["plugins"].as_array().into_iter().flatten()
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        node: &NetNs,
        pod: &Pod,
        netns: &Path,
        previous: Option<&Value>,
    ) -> anyhow::Result<Vec<u8>> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let mut config = plugin.clone();
        config["cniVersion"] = self.conflist["cniVersion"].clone();
        config["name"] = self.conflist["name"].clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let (namespace, name, uid) = (&pod.namespace, &pod.name, &pod.uid);
        let id = container_id(pod);
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
        );
        let mut command = Command::new(self.bin_dir.join(kind));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin_dir)
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::process::in_netns(&mut command, node)?;
        netns::process::unblock_signals(&mut command);
        let mut child = netns::process::die_with_parent(&mut command).spawn().with_context(|| format!("run {kind}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that ends without reading says why in its output.
            let _ = stdin.write_all(config.to_string().as_bytes());
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match (error["msg"].as_str(), error["details"].as_str()) {
            (Some(msg), Some(details)) => anyhow::bail!("{msg}. {details}"),
            _ => {
                anyhow::bail!("{kind} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
            }
        }
    }
}

/// As long as a runtime's, and always the same for a pod.
fn container_id(pod: &Pod) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{hex:0<64}").chars().take(64).collect()
}
