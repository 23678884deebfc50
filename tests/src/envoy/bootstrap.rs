//! Envoy's bootstrap, as Istio's agent writes it.

use serde_json::Value;

/// The name of the socket on which the agent serves discovery.
const AGENT_SOCKET: &str = "/XDS";

/// A bootstrap for a plain Envoy.
pub(super) struct Bootstrap {
    pub(super) path: String,
    /// Where Istio's agent serves discovery.
    pub(super) agent_socket: String,
    /// Where Envoy expects it instead.
    pub(super) own_socket: String,
}

/// Writes a bootstrap beside this one, without Istio's extensions, and with another socket for
/// discovery.
pub(super) fn edit(path: &str) -> Bootstrap {
    let mut bootstrap: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    if let Some(all) = bootstrap["bootstrap_extensions"].as_array_mut() {
        all.retain(|extension| {
            let config = &extension["typed_config"];
            let wrapped = config["type_url"].as_str(); // in a structure
            let kind = wrapped.or(config["@type"].as_str()).unwrap_or_default();
            let is_istios = kind.contains("/istio.");
            if is_istios {
                super::log_once(format!("removed {kind} from the bootstrap"));
            }
            !is_istios
        });
    }
    let mut agent_socket = None;
    redirect(&mut bootstrap, &mut agent_socket);
    let agent_socket = agent_socket.expect("the bootstrap names the agent's socket");
    let path = format!("{}-plain.json", path.trim_end_matches(".json"));
    std::fs::write(&path, bootstrap.to_string()).unwrap();
    Bootstrap {
        path,
        own_socket: own_socket(&agent_socket),
        agent_socket,
    }
}

fn own_socket(agent: &str) -> String {
    format!("{agent}-filtered")
}

/// Replaces the agent's socket wherever it is named.
fn redirect(value: &mut Value, found: &mut Option<String>) {
    if let Some(path) = value.pointer_mut("/pipe/path")
        && let Some(agent) = path.as_str().filter(|p| p.ends_with(AGENT_SOCKET))
    {
        *found = Some(agent.to_owned());
        *path = Value::String(own_socket(agent));
    }
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|v| redirect(v, found)),
        Value::Array(items) => items.iter_mut().for_each(|v| redirect(v, found)),
        _ => {}
    }
}
