//! Runs CNI plugins like a container runtime: in order, each with the previous result.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use netns::NetNs;
use serde_json::{Value, json};

use super::plan::SandboxPod;

use crate::output::print_error;

/// The CNI configuration of a node.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    pub(crate) bin_dir: PathBuf,
    pub(crate) conflist: Value,
}

/// The conflist of a node: the sandbox's network plugin, then Underpass.
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

/// How often a pod is started if its plugins ask for another attempt. A kubelet has no limit.
const ATTEMPTS: usize = 3;

/// A plugin's error in the format of the CNI specification.
#[derive(Debug, thiserror::Error)]
#[error("{msg}. {details}")]
struct PluginError {
    code: u32,
    msg: String,
    details: String,
}

impl Runtime {
    /// Runs ADD of all plugins in order and returns the last result. If one fails, runs DEL of all,
    /// and starts again if the plugin asks for it.
    pub(crate) fn add(
        &self,
        node: &NetNs,
        pod: &SandboxPod,
        netns: &Path,
    ) -> anyhow::Result<Value> {
        for _ in 1..ATTEMPTS {
            match self.add_once(node, pod, netns) {
                Err(e) if is_transient(&e) => {}
                done => return done,
            }
        }
        self.add_once(node, pod, netns)
    }

    fn add_once(&self, node: &NetNs, pod: &SandboxPod, netns: &Path) -> anyhow::Result<Value> {
        let mut result = None;
        for plugin in self.plugins() {
            let called = self.call("ADD", plugin, node, pod, netns, result.as_ref());
            let output = called.inspect_err(|_| self.del(node, pod, netns, result.as_ref()))?;
            let parsed = serde_json::from_slice(&output);
            result = Some(parsed.context("a plugin's result is not JSON")?);
        }
        result.context("the conflist has no plugins")
    }

    /// Runs DEL of all plugins in reverse order.
    fn del(&self, node: &NetNs, pod: &SandboxPod, netns: &Path, result: Option<&Value>) {
        for plugin in self.plugins().collect::<Vec<_>>().into_iter().rev() {
            if let Err(e) = self.call("DEL", plugin, node, pod, netns, result) {
                let (namespace, name) = (&pod.namespace, &pod.name);
                print_error(format_args!("DEL of {namespace}/{name} failed: {e:#}"));
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
        pod: &SandboxPod,
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
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
        );
        let mut command = Command::new(self.bin_dir.join(kind));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin_dir)
            .env("CNI_ARGS", args);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        netns::process::in_netns(&mut command, node)?;
        netns::process::unblock_signals(&mut command);
        let started = netns::process::die_with_parent(&mut command).spawn();
        let mut child = started.with_context(|| format!("run {kind}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that exits without reading reports the reason in its output.
            let _ = stdin.write_all(config.to_string().as_bytes());
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let code = error["code"].as_u64().and_then(|code| code.try_into().ok());
        match (code, error["msg"].as_str(), error["details"].as_str()) {
            (Some(code), Some(msg), Some(details)) => anyhow::bail!(PluginError {
                code,
                msg: msg.to_owned(),
                details: details.to_owned(),
            }),
            _ => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                anyhow::bail!("{kind} exited with {}: {}", output.status, stderr.trim())
            }
        }
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    let plugin = error.downcast_ref::<PluginError>();
    plugin.is_some_and(|e| e.code == cni_spec::codes::TRY_AGAIN)
}

/// A container id with the length of a runtime's, derived from the pod's name.
fn container_id(pod: &SandboxPod) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{hex:0<64}").chars().take(64).collect()
}
