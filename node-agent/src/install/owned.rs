//! Chains the plugin in a copy of the configuration that the runtime would use. The runtime prefers
//! the copy by its name.
//!
//! Another program may rewrite the original at any time, as a main CNI plugin does when its node
//! starts: the runtime still uses the copy, and so pods wait for the agent instead of starting
//! outside the mesh.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::chain::{chain, entry_of, is_chained, unchain, unsupported_version};
use super::files::{ChainError, InstallOutcome, at, configurations, read, restore};
use super::replace::{sync, write};

/// Key of the plugin's entry in a copy: the name of the original.
const COPY_OF: &str = "copyOf";

/// Parses the name of a copy.
pub(super) fn name(text: &str) -> Result<String, String> {
    let stem = text.strip_suffix(".conflist");
    match stem.filter(|stem| !stem.is_empty() && !text.contains('/')) {
        Some(_) => Ok(text.to_owned()),
        None => Err("expected a file name such as `02-underpass-cni.conflist`".to_owned()),
    }
}

/// Whether a configuration is a copy that an agent made.
pub(super) fn is_copy(configuration: &Value) -> bool {
    entry_of(configuration).is_some_and(|entry| entry[COPY_OF].is_string())
}

/// Writes the copy of the configuration that the runtime would use without it, the first by name,
/// with the plugin at its end. Without an original, an earlier copy stays: pods must not start
/// outside the mesh, and the main plugin may only be about to write its configuration.
pub(super) fn install_copy(
    folder: &Path,
    name: &str,
    entry: &Value,
) -> Result<InstallOutcome, ChainError> {
    for (path, format) in configurations(folder).map_err(at(folder))? {
        let Some(mut original) = read(&path).map_err(at(&path))?.filter(|c| !is_copy(c)) else {
            continue;
        };
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut entry = entry.clone();
        entry[COPY_OF] = json!(file_name);
        let was_chained = is_chained(&original);
        if was_chained {
            original = unchain(&original);
        }
        let copy = match chain(&original, format, &entry) {
            Ok(copy) => copy,
            Err(e) => {
                tracing::warn!("ignoring {}: {e}", path.display());
                continue;
            }
        };
        if let Some(version) = unsupported_version(&copy) {
            let version = version.to_owned();
            return Err(ChainError::Version { path, version });
        }
        if *file_name <= *name {
            let copy = name.to_owned();
            return Err(ChainError::Order { path, copy });
        }
        let to = folder.join(name);
        let is_current = read(&to).map_err(at(&to))?.as_ref() == Some(&copy);
        if !is_current {
            write(&to, &copy).map_err(at(&to))?;
        }
        // Last: until then, the runtime uses what an agent without a copy has chained, or the copy
        // under its earlier name.
        if was_chained {
            let chained = read(&path).map_err(at(&path))?.unwrap_or_default();
            restore(folder, &path, &chained).map_err(at(&path))?;
        }
        remove_copies(folder, Some(name))?;
        return Ok(match is_current {
            true => InstallOutcome::Unchanged,
            false => InstallOutcome::Written(to),
        });
    }
    Ok(InstallOutcome::NoConfiguration)
}

/// Removes the copies but that of the given name.
pub(super) fn remove_copies(folder: &Path, but: Option<&str>) -> Result<(), ChainError> {
    for (path, _) in configurations(folder).map_err(at(folder))? {
        let is_kept = path.file_name().and_then(|name| name.to_str()) == but && but.is_some();
        // A file that cannot be read is reported where it matters: as the runtime's.
        let found = read(&path).ok().flatten();
        if !is_kept && found.as_ref().is_some_and(is_copy) {
            fs::remove_file(&path).map_err(at(&path))?;
            sync(folder).map_err(at(folder))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::files::{install_chain, uninstall_chain};
    use super::*;

    const COPY: &str = "02-underpass-cni.conflist";
    const ORIGINAL: &str = "10-calico.conflist";
    const LIST: &str = r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"calico"}]}"#;

    /// A configuration folder.
    struct ConfDir(tempfile::TempDir);

    impl ConfDir {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            files
                .iter()
                .for_each(|(file, text)| folder.write(file, text));
            folder
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.path().join(file), text).unwrap();
        }

        fn text(&self, file: &str) -> String {
            fs::read_to_string(self.0.path().join(file)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let files = fs::read_dir(self.0.path()).unwrap();
            let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name();
            let names = files.map(name).map(|n| n.into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        }

        fn copy(&self, name: &str) -> Result<InstallOutcome, ChainError> {
            let entry = json!({ "type": super::super::PLUGIN });
            install_copy(self.0.path(), name, &entry)
        }

        /// The types in the chain of a file, and the name of its original.
        fn chain_of(&self, file: &str) -> (Vec<String>, Value) {
            let list: Value = serde_json::from_str(&self.text(file)).unwrap();
            let types = list["plugins"].as_array().unwrap().iter();
            let types = types.map(|p| p["type"].as_str().unwrap().to_owned());
            let of = entry_of(&list).map(|entry| entry[COPY_OF].clone());
            (types.collect(), of.unwrap_or_default())
        }
    }

    #[test]
    fn the_original_stays_as_it_is_and_its_changes_reach_the_copy() {
        let folder = ConfDir::new(&[(ORIGINAL, LIST)]);
        let written = || InstallOutcome::Written(folder.0.path().join(COPY));
        assert_eq!(folder.copy(COPY).unwrap(), written());
        assert_eq!(folder.copy(COPY).unwrap(), InstallOutcome::Unchanged);
        assert_eq!(folder.text(ORIGINAL), LIST);
        let chained = |types: &[&str]| {
            let types = types.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
            (types, json!(ORIGINAL))
        };
        assert_eq!(folder.chain_of(COPY), chained(&["calico", "underpass-cni"]));
        folder.write(
            ORIGINAL,
            &LIST.replace(r#"{"type":"calico"}"#, r#"{"type":"b"}"#),
        );
        assert_eq!(folder.copy(COPY).unwrap(), written());
        assert_eq!(folder.chain_of(COPY), chained(&["b", "underpass-cni"]));
    }

    #[test]
    fn the_copy_outlives_its_original_and_uninstalling_removes_it() {
        let folder = ConfDir::new(&[(ORIGINAL, LIST)]);
        folder.copy(COPY).unwrap();
        fs::remove_file(folder.0.path().join(ORIGINAL)).unwrap();
        assert_eq!(folder.copy(COPY).unwrap(), InstallOutcome::NoConfiguration);
        assert_eq!(folder.names(), [COPY]);
        let (chains, result) = uninstall_chain(folder.0.path());
        result.unwrap();
        assert_eq!((chains, folder.names().len()), (1, 0));
    }

    #[test]
    fn an_agent_changes_between_its_own_copy_and_the_original() {
        let folder = ConfDir::new(&[(ORIGINAL, LIST)]);
        let entry = json!({ "type": super::super::PLUGIN });
        for _ in 0..2 {
            install_chain(folder.0.path(), &entry).unwrap();
            assert!(!folder.names().contains(&COPY.to_owned()));
            assert_eq!(folder.chain_of(ORIGINAL).0, ["calico", "underpass-cni"]);
            folder.copy(COPY).unwrap();
            assert_eq!(folder.text(ORIGINAL), LIST);
            assert_eq!(folder.names(), [COPY, ORIGINAL]);
        }
        let earlier = "01-mesh.conflist";
        folder.copy(earlier).unwrap();
        assert_eq!(folder.names(), [earlier, ORIGINAL]);
    }

    #[test]
    fn a_single_plugin_is_copied_as_a_list() {
        let single = r#"{"cniVersion":"0.4.0","name":"n","type":"ovn"}"#;
        let folder = ConfDir::new(&[("10-ovn.conf", single)]);
        folder.copy(COPY).unwrap();
        assert_eq!(folder.names(), [COPY, "10-ovn.conf"]);
        assert_eq!(folder.chain_of(COPY).0, ["ovn", "underpass-cni"]);
    }

    #[test]
    fn a_copy_that_the_runtime_would_not_use_is_an_error() {
        let folder = ConfDir::new(&[("00-multus.conflist", LIST)]);
        let error = folder.copy(COPY).unwrap_err();
        assert!(matches!(error, ChainError::Order { .. }), "{error}");
        assert_eq!(folder.names(), ["00-multus.conflist"]);
        let newer = LIST.replace("0.3.1", "9.0.0");
        let folder = ConfDir::new(&[(ORIGINAL, &newer)]);
        let error = folder.copy(COPY).unwrap_err();
        assert!(matches!(error, ChainError::Version { .. }), "{error}");
    }
}
