//! The runtime's network configuration with our plugin at the end of its chain, and without. Pure; keys that we do not
//! know and their order stay as they are.

use serde_json::{Map, Value, json};

/// The `type` of our plugin's entry.
pub(crate) const PLUGIN: &str = "underpass-cni";

/// A file that is no usable network configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAConfiguration {
    #[error("it is not a JSON object")]
    NotAnObject,
    #[error("it has neither plugins nor a type")]
    NoPlugins,
}

/// The configuration with `entry` as the last plugin of the chain. What an entry of ours said before, such as namespaces
/// to exclude, stays unless `entry` says otherwise. A configuration of a single plugin becomes a list.
pub(crate) fn chain(configuration: &Value, entry: &Value) -> Result<Value, NotAConfiguration> {
    let mut list = as_list(configuration)?;
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut).ok_or(NotAConfiguration::NoPlugins)?;
    let mut ours = Map::new();
    for old in plugins.iter().filter(|p| p["type"] == PLUGIN).filter_map(Value::as_object) {
        ours.extend(old.clone());
    }
    ours.extend(entry.as_object().cloned().unwrap_or_default());
    plugins.retain(|p| p["type"] != PLUGIN);
    if plugins.is_empty() {
        return Err(NotAConfiguration::NoPlugins);
    }
    plugins.push(Value::Object(ours));
    Ok(Value::Object(list))
}

/// The configuration without our plugin.
pub(crate) fn unchain(configuration: &Value) -> Value {
    let mut without = configuration.clone();
    if let Some(plugins) = without["plugins"].as_array_mut() {
        plugins.retain(|p| p["type"] != PLUGIN);
    }
    without
}

/// Whether our plugin is in the chain.
pub(crate) fn is_chained(configuration: &Value) -> bool {
    configuration["plugins"].as_array().is_some_and(|plugins| plugins.iter().any(|p| p["type"] == PLUGIN))
}

/// Whether this is a list of plugins, not a single one.
pub(crate) fn is_list(configuration: &Value) -> bool {
    configuration["plugins"].is_array()
}

fn as_list(configuration: &Value) -> Result<Map<String, Value>, NotAConfiguration> {
    let object = configuration.as_object().ok_or(NotAConfiguration::NotAnObject)?;
    if object.get("plugins").is_some_and(Value::is_array) {
        return Ok(object.clone());
    }
    if !object.get("type").is_some_and(Value::is_string) {
        return Err(NotAConfiguration::NoPlugins);
    }
    // What belongs to the network moves up; the rest is the plugin.
    let mut list = Map::new();
    let mut plugin = object.clone();
    for key in ["cniVersion", "cniVersions", "name", "disableCheck", "disableGC"] {
        if let Some(value) = plugin.shift_remove(key) {
            list.insert(key.to_owned(), value);
        }
    }
    list.insert("plugins".to_owned(), json!([plugin]));
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Value {
        json!({ "type": PLUGIN, "agentSocket": "/a" })
    }

    #[test]
    fn our_plugin_comes_last_once_and_nothing_else_changes() {
        let text =
            r#"{"cniVersion":"1.0.0","name":"n","zzz":1,"plugins":[{"type":"bridge","b":1,"a":2},{"type":"portmap"}]}"#;
        let original: Value = serde_json::from_str(text).unwrap();
        let chained = chain(&original, &entry()).unwrap();
        assert_eq!(
            chained.to_string(),
            r#"{"cniVersion":"1.0.0","name":"n","zzz":1,"plugins":[{"type":"bridge","b":1,"a":2},{"type":"portmap"},{"type":"underpass-cni","agentSocket":"/a"}]}"#
        );
        assert_eq!(chain(&chained, &entry()).unwrap(), chained);
        assert!(is_chained(&chained) && !is_chained(&original));
        assert_eq!(unchain(&chained).to_string(), text);
        // Somebody put a plugin behind ours, or left an old entry of ours.
        let odd = json!({ "plugins": [{ "type": PLUGIN, "deadlineMs": 9, "agentSocket": "/old" }, { "type": "x" }] });
        let ours = json!({ "type": PLUGIN, "deadlineMs": 9, "agentSocket": "/a" });
        assert_eq!(chain(&odd, &entry()).unwrap()["plugins"], json!([{ "type": "x" }, ours]));
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let single = json!({ "cniVersion": "0.3.1", "name": "n", "type": "ptp", "ipam": { "type": "host-local" } });
        let expected = json!({
            "cniVersion": "0.3.1", "name": "n",
            "plugins": [{ "type": "ptp", "ipam": { "type": "host-local" } }, entry()],
        });
        assert_eq!(chain(&single, &entry()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for bad in
            [json!(null), json!([]), json!({}), json!({ "plugins": [] }), json!({ "plugins": 3 }), json!({ "type": 3 })]
        {
            assert!(chain(&bad, &entry()).is_err(), "{bad}");
        }
        assert_eq!(chain(&json!({ "plugins": [entry()] }), &entry()), Err(NotAConfiguration::NoPlugins));
    }
}
