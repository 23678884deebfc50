//! Rules of the installer, on a folder on disk.

use serde_json::json;

use super::*;

/// A configuration folder.
struct ConfDir(tempfile::TempDir);

impl ConfDir {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(folder.path().join(file), text).unwrap();
        }
        Self(folder)
    }

    fn try_install(&self) -> Result<InstallOutcome, ChainError> {
        let entry = json!({ "type": super::super::PLUGIN });
        install_chain(self.0.path(), &entry)
    }

    fn install(&self) -> InstallOutcome {
        self.try_install().unwrap()
    }

    fn uninstall(&self) -> usize {
        let (chains, result) = uninstall_chain(self.0.path());
        result.unwrap();
        chains
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.path().join(file), text).unwrap();
    }

    /// The files in the folder, by name.
    fn files(&self) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        names.sort();
        names
    }

    /// The chained files, by name.
    fn chained(&self) -> Vec<String> {
        let mut paths = configurations(self.0.path()).unwrap();
        paths.retain(|(path, _)| matches!(read(path), Ok(Some(c)) if is_chained(&c)));
        let name =
            |(p, _): &(PathBuf, Format)| p.file_name().unwrap().to_string_lossy().into_owned();
        paths.iter().map(name).collect()
    }

    fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.path().join(file)).ok()
    }
}

const LIST: &str = r#"{ "name":"n", "plugins":[{"type":"bridge"}] }"#;

#[test]
fn only_the_first_usable_configuration_is_chained() {
    let files = [
        ("05-bad.conflist", "{"),
        ("07-no.conf", "{}"),
        ("20-b.conflist", LIST),
    ];
    let folder = ConfDir::new(&files);
    let written = folder.install();
    assert_eq!(
        written,
        InstallOutcome::Written(folder.0.path().join("20-b.conflist"))
    );
    assert_eq!(folder.install(), InstallOutcome::Unchanged);
    // Another network is installed, which the runtime now prefers.
    fs::write(folder.0.path().join("10-a.conflist"), LIST).unwrap();
    folder.install();
    assert_eq!(folder.chained(), ["10-a.conflist"]);
    assert_eq!(folder.text("20-b.conflist").as_deref(), Some(LIST));
}

#[test]
fn without_a_configuration_nothing_is_written() {
    let folder = ConfDir::new(&[("readme.txt", LIST)]);
    assert_eq!(folder.install(), InstallOutcome::NoConfiguration);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
}

#[test]
fn uninstalling_restores_the_original_bytes() {
    let single = r#"{ "name":"n",  "type":"ptp" }"#;
    for (file, text) in [
        ("10-a.conflist", LIST),
        ("10-a.conf", single),
        ("10-a.json", single),
    ] {
        let folder = ConfDir::new(&[(file, text)]);
        folder.install();
        assert_eq!(folder.chained(), ["10-a.conflist"]);
        assert_eq!(folder.uninstall(), 1);
        assert_eq!(folder.text(file).as_deref(), Some(text));
        assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1, "{file}");
        assert_eq!(folder.uninstall(), 0);
    }
}

#[test]
fn changes_made_after_the_installation_survive_its_removal() {
    let folder = ConfDir::new(&[("10-a.conflist", LIST)]);
    folder.install();
    let path = folder.0.path().join("10-a.conflist");
    let mut changed = read(&path).unwrap().unwrap();
    changed["plugins"][0]["mtu"] = json!(1400);
    fs::write(&path, changed.to_string()).unwrap();
    folder.uninstall();
    let expected = json!({ "name": "n", "plugins": [{ "type": "bridge", "mtu": 1400 }] });
    assert_eq!(read(&path).unwrap(), Some(expected));
    assert!(!saved(&path).exists());
}

const SINGLE: &str = r#"{ "name":"n",  "type":"ptp" }"#;

#[test]
fn files_that_no_runtime_reads_stay_as_they_are() {
    // CRI-O skips both, containerd has no network until they are corrected.
    let folder = ConfDir::new(&[
        ("00-a.conf", LIST),
        ("01-b.json", LIST),
        ("02-c.conflist", SINGLE),
        ("10-d.conflist", LIST),
    ]);
    fs::create_dir(folder.0.path().join("00-folder.conflist")).unwrap();
    folder.install();
    assert_eq!(folder.chained(), ["10-d.conflist"]);
    for (file, text) in [("00-a.conf", LIST), ("02-c.conflist", SINGLE)] {
        assert_eq!(folder.text(file).as_deref(), Some(text), "{file}");
    }
    let folder = ConfDir::new(&[("02-c.conflist", SINGLE)]);
    assert_eq!(folder.install(), InstallOutcome::NoConfiguration);
    assert_eq!(folder.files(), ["02-c.conflist"]);
}

#[test]
fn chains_in_files_that_no_runtime_reads_are_removed() {
    let chained = r#"{"name":"n","plugins":[{"type":"a"},{"type":"underpass-cni"}]}"#;
    let folder = ConfDir::new(&[("00-a.conf", chained), ("10-d.conflist", LIST)]);
    folder.install();
    assert_eq!(folder.chained(), ["10-d.conflist"]);
}

#[test]
fn a_list_of_an_unsupported_version_is_not_chained_and_no_other_either() {
    let newer = r#"{"cniVersion":"1.2.0","name":"n","plugins":[{"type":"a"}]}"#;
    let folder = ConfDir::new(&[("20-b.conflist", LIST)]);
    folder.install();
    folder.write("10-a.conflist", newer);
    let error = folder.try_install().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("10-a.conflist: cniVersion 1.2.0"),
        "{error}"
    );
    assert!(folder.chained().is_empty());
    assert_eq!(folder.text("10-a.conflist").as_deref(), Some(newer));
    for version in ["", "0.1.0", "0.3.0"] {
        let list = newer.replace("1.2.0", version);
        folder.write("10-a.conflist", &list);
        folder.install();
        assert_eq!(folder.chained(), ["10-a.conflist"]);
    }
}

#[test]
fn an_unreadable_first_file_never_chains_the_second() {
    let folder = ConfDir::new(&[("20-b.conflist", LIST)]);
    // Reading a file of this name fails, also for root.
    let (first, itself) = (folder.0.path().join("10-a.conflist"), "10-a.conflist");
    std::os::unix::fs::symlink(itself, &first).unwrap();
    let error = folder.try_install().unwrap_err();
    assert!(
        matches!(&error, ChainError::Io { path, .. } if *path == first),
        "{error}"
    );
    assert!(folder.chained().is_empty());
    // The runtime does not use files after the first.
    folder.write("05-first.conflist", LIST);
    folder.install();
    assert_eq!(folder.chained(), ["05-first.conflist"]);
    let (chains, result) = uninstall_chain(folder.0.path());
    assert!(chains == 1 && result.is_err());
    assert!(folder.chained().is_empty());
}

#[test]
fn a_single_plugin_that_reappears_beside_its_list_is_chained_in_the_same_run() {
    let folder = ConfDir::new(&[("00-multus.conf", SINGLE)]);
    folder.install();
    let newer = r#"{ "name":"n", "type":"ptp", "mtu":1400 }"#;
    folder.write("00-multus.conf", newer);
    let list = folder.0.path().join("00-multus.conflist");
    assert_eq!(folder.install(), InstallOutcome::Written(list.clone()));
    assert_eq!(folder.chained(), ["00-multus.conflist"]);
    assert_eq!(read(&list).unwrap().unwrap()["plugins"][0]["mtu"], 1400);
    assert_eq!(folder.install(), InstallOutcome::Unchanged);
    folder.uninstall();
    assert_eq!(folder.text("00-multus.conf").as_deref(), Some(newer));
    assert_eq!(folder.files(), ["00-multus.conf"]);
}

#[test]
fn a_single_plugin_written_again_by_its_owner_survives_the_removal() {
    let folder = ConfDir::new(&[("00-multus.conf", SINGLE)]);
    folder.install();
    let newer = r#"{ "name":"n", "type":"ptp", "mtu":1400 }"#;
    folder.write("00-multus.conf", newer);
    folder.uninstall();
    assert_eq!(folder.text("00-multus.conf").as_deref(), Some(newer));
    assert_eq!(folder.files(), ["00-multus.conf"]);
}

#[test]
fn another_list_of_the_same_name_is_restored_with_the_single_plugin() {
    let folder = ConfDir::new(&[("10-a.conf", SINGLE), ("10-a.conflist", LIST)]);
    for _ in 0..2 {
        folder.install();
        assert_eq!(folder.chained(), ["10-a.conflist"]);
    }
    let list = read(&folder.0.path().join("10-a.conflist"))
        .unwrap()
        .unwrap();
    assert_eq!(
        list["plugins"][0]["type"], "ptp",
        "what the runtime used before"
    );
    folder.uninstall();
    assert_eq!(folder.text("10-a.conf").as_deref(), Some(SINGLE));
    assert_eq!(folder.text("10-a.conflist").as_deref(), Some(LIST));
}

#[test]
fn an_old_saved_copy_does_not_replace_a_newer_list() {
    for saved in ["10-a.conf.underpass-saved", "10-a.json.underpass-saved"] {
        let folder = ConfDir::new(&[("10-a.conflist", LIST), (saved, SINGLE)]);
        folder.install();
        folder.uninstall();
        assert_eq!(folder.text("10-a.conflist").as_deref(), Some(LIST));
        assert_eq!(folder.files(), ["10-a.conflist"], "{saved}");
    }
}
