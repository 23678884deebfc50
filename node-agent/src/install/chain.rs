//! Adds the plugin to the end of a CNI network configuration, and removes it. Performs no I/O;
//! preserves unknown keys and their order.

use std::path::Path;

use cni_spec::SUPPORTED_VERSIONS;
use serde_json::{Map, Value, json};

/// The `type` of the plugin's entry.
pub(crate) const PLUGIN: &str = "underpass-cni";

/// What runtimes expect in a file. containerd and CRI-O decide by its extension and ignore, or
/// fail on, the other format (libcni's `ConfListFromFile` and `ConfFromFile`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `.conflist`: a list of plugins.
    List,
    /// `.conf` and `.json`: a single plugin.
    Single,
}

/// Why no runtime uses a file as its network configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidConfiguration {
    #[error("not a JSON object")]
    NotAnObject,
    #[error("a list without a name")]
    NoName,
    #[error("no list of plugins; runtimes read a single plugin only from .conf and .json files")]
    NoPlugins,
    #[error("no plugin besides underpass-cni")]
    OnlyUnderpass,
    #[error("a plugin without a type")]
    NoTypeInList,
    #[error("no plugin type; runtimes read a list only from .conflist files")]
    NoType,
    #[error("invalid cniVersion or cniVersions: expected a string, and a list of strings")]
    Version,
}

impl Format {
    /// The format of a file; `None` if runtimes do not read it.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "conflist" => Some(Self::List),
            "conf" | "json" => Some(Self::Single),
            _ => None,
        }
    }
}

/// Returns the configuration with `entry` as the last plugin of the chain. Keys of an existing
/// entry, such as excluded namespaces, are kept unless `entry` overrides them. A configuration of a
/// single plugin becomes a list.
pub(crate) fn chain(
    configuration: &Value,
    format: Format,
    entry: &Value,
) -> Result<Value, InvalidConfiguration> {
    let mut list = as_list(configuration, format)?;
    let plugins = list
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or(InvalidConfiguration::NoPlugins)?;
    let mut merged = Map::new();
    for old in plugins
        .iter()
        .filter(|p| p["type"] == PLUGIN)
        .filter_map(Value::as_object)
    {
        merged.extend(old.clone());
    }
    merged.extend(entry.as_object().cloned().unwrap_or_default());
    plugins.retain(|p| p["type"] != PLUGIN);
    if plugins.is_empty() {
        return Err(InvalidConfiguration::OnlyUnderpass);
    }
    plugins.push(Value::Object(merged));
    Ok(Value::Object(list))
}

/// Returns the configuration without the plugin.
pub(crate) fn unchain(configuration: &Value) -> Value {
    let mut without = configuration.clone();
    if let Some(plugins) = without["plugins"].as_array_mut() {
        plugins.retain(|p| p["type"] != PLUGIN);
    }
    without
}

/// Whether the plugin is in the chain.
pub(crate) fn is_chained(configuration: &Value) -> bool {
    entry_of(configuration).is_some()
}

/// The plugin's entry in the chain.
pub(crate) fn entry_of(configuration: &Value) -> Option<&Value> {
    let plugins = configuration["plugins"].as_array()?;
    plugins.iter().find(|p| p["type"] == PLUGIN)
}

/// A version of the list that the plugin does not support. With `cniVersions`, the runtime selects
/// the newest that it knows itself, so the plugin must support all of them.
pub(crate) fn unsupported_version(list: &Value) -> Option<&str> {
    let more = list["cniVersions"].as_array().into_iter().flatten();
    std::iter::once(&list["cniVersion"])
        .chain(more)
        .filter_map(Value::as_str)
        .find(|v| !v.is_empty() && !SUPPORTED_VERSIONS.contains(v))
}

/// The list as which a runtime uses the configuration.
pub(crate) fn as_list(
    configuration: &Value,
    format: Format,
) -> Result<Map<String, Value>, InvalidConfiguration> {
    let object = configuration
        .as_object()
        .ok_or(InvalidConfiguration::NotAnObject)?;
    let is_version = |v: &Value| v.is_string() || v.is_null();
    if !object.get("cniVersion").is_none_or(is_version) {
        return Err(InvalidConfiguration::Version);
    }
    match format {
        Format::List => checked_list(object),
        Format::Single => single_as_list(object),
    }
}

fn checked_list(list: &Map<String, Value>) -> Result<Map<String, Value>, InvalidConfiguration> {
    let plugins = list.get("plugins").and_then(Value::as_array);
    let plugins = plugins.ok_or(InvalidConfiguration::NoPlugins)?;
    if plugins.is_empty() {
        return Err(InvalidConfiguration::NoPlugins);
    }
    if !plugins.iter().all(has_type) {
        return Err(InvalidConfiguration::NoTypeInList);
    }
    if !list.get("name").is_some_and(Value::is_string) {
        return Err(InvalidConfiguration::NoName);
    }
    let strings = |v: &Value| {
        v.as_array()
            .is_some_and(|all| all.iter().all(Value::is_string))
    };
    if !list.get("cniVersions").is_none_or(strings) {
        return Err(InvalidConfiguration::Version);
    }
    Ok(list.clone())
}

fn single_as_list(single: &Map<String, Value>) -> Result<Map<String, Value>, InvalidConfiguration> {
    let mut plugin = Value::Object(single.clone());
    if !has_type(&plugin) {
        return Err(InvalidConfiguration::NoType);
    }
    // Keys of the network move to the list; the rest is the plugin's. As in libcni, `cniVersions`
    // and others remain without effect.
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        let value = plugin.as_object_mut().and_then(|p| p.shift_remove(key));
        if let Some(value) = value.filter(|v| !v.is_null()) {
            list.insert(key.to_owned(), value);
        }
    }
    list.entry("name").or_insert_with(|| json!(""));
    list.insert("plugins".to_owned(), json!([plugin]));
    Ok(list)
}

fn has_type(plugin: &Value) -> bool {
    plugin["type"].as_str().is_some_and(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Value {
        json!({ "type": PLUGIN, "agentSocket": "/a" })
    }

    #[test]
    fn chaining_appends_the_plugin_once_and_changes_nothing_else() {
        let text = concat!(
            r#"{"cniVersion":"1.0.0","name":"n","zzz":1,"#,
            r#""plugins":[{"type":"bridge","b":1,"a":2},{"type":"portmap"}]}"#
        );
        let original: Value = serde_json::from_str(text).unwrap();
        let chain = |list| chain(list, Format::List, &entry()).unwrap();
        let chained = chain(&original);
        assert_eq!(
            chained.to_string(),
            concat!(
                r#"{"cniVersion":"1.0.0","name":"n","zzz":1,"#,
                r#""plugins":[{"type":"bridge","b":1,"a":2},{"type":"portmap"},"#,
                r#"{"type":"underpass-cni","agentSocket":"/a"}]}"#
            )
        );
        assert_eq!(chain(&chained), chained);
        assert!(is_chained(&chained) && !is_chained(&original));
        assert_eq!(unchain(&chained).to_string(), text);
        // An old entry of the plugin, followed by another plugin.
        let old = json!({ "type": PLUGIN, "deadlineMs": 9, "agentSocket": "/old" });
        let not_last = json!({ "name": "n", "plugins": [old, { "type": "x" }] });
        let merged = json!({ "type": PLUGIN, "deadlineMs": 9, "agentSocket": "/a" });
        assert_eq!(
            chain(&not_last)["plugins"],
            json!([{ "type": "x" }, merged])
        );
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let single = json!({
            "cniVersion": "0.3.1",
            "name": "n",
            "type": "ptp",
            "ipam": { "type": "host-local" },
        });
        let expected = json!({
            "cniVersion": "0.3.1", "name": "n",
            "plugins": [{ "type": "ptp", "ipam": { "type": "host-local" } }, entry()],
        });
        assert_eq!(chain(&single, Format::Single, &entry()), Ok(expected));
    }

    #[test]
    fn only_what_runtimes_read_is_chained() {
        let name = |file: &str| Format::of(Path::new(file));
        assert_eq!(name("/a/1.conflist"), Some(Format::List));
        for single in ["1.conf", "1.json"] {
            assert_eq!(name(single), Some(Format::Single));
        }
        for other in ["1.conf.underpass-saved", "conf", "1.CONF", "1.yaml"] {
            assert_eq!(name(other), None, "{other}");
        }
        let (single, list) = (
            json!({ "name": "n", "type": "ptp" }),
            json!({ "name": "n", "plugins": [{ "type": "ptp" }] }),
        );
        let check = |configuration: Value, format, expected: Option<InvalidConfiguration>| {
            let found = chain(&configuration, format, &entry()).err();
            assert_eq!(found, expected, "{configuration} as {format:?}");
        };
        use InvalidConfiguration::*;
        for format in [Format::List, Format::Single] {
            check(json!(null), format, Some(NotAnObject));
            check(json!([]), format, Some(NotAnObject));
        }
        check(list.clone(), Format::List, None);
        check(list, Format::Single, Some(NoType));
        check(single.clone(), Format::Single, None);
        check(single, Format::List, Some(NoPlugins));
        check(json!({ "type": 3 }), Format::Single, Some(NoType));
        for (plugins, error) in [
            (json!([]), NoPlugins),
            (json!(3), NoPlugins),
            (json!([{ "a": 1 }]), NoTypeInList),
            (json!([entry()]), OnlyUnderpass),
        ] {
            let list = json!({ "name": "n", "plugins": plugins });
            check(list, Format::List, Some(error));
        }
        let nameless = json!({ "plugins": [{ "type": "a" }] });
        check(nameless, Format::List, Some(NoName));
        let version = json!({ "cniVersion": 1, "name": "n", "type": "a" });
        check(version, Format::Single, Some(Version));
    }

    #[test]
    fn every_version_that_the_runtime_may_select_must_be_supported() {
        let unsupported = |versions: Value| unsupported_version(&versions).map(str::to_owned);
        for version in SUPPORTED_VERSIONS {
            assert_eq!(unsupported(json!({ "cniVersion": version })), None);
        }
        for none in [
            json!({}),
            json!({ "cniVersion": "" }),
            json!({ "cniVersion": null }),
        ] {
            assert_eq!(unsupported(none), None);
        }
        let newer = Some("1.2.0".to_owned());
        assert_eq!(unsupported(json!({ "cniVersion": "1.2.0" })), newer);
        let several = json!({ "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.2.0"] });
        assert_eq!(unsupported(several), newer);
    }
}
