//! The image of the tests' containers: busybox and a page for its web server, in the format of
//! `docker save`, so that no registry is needed.

#![allow(clippy::disallowed_types)] // tar and sha256sum

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::binaries::runtimes;

/// The image's name. It is also the sandbox (pause) image: without a command it sleeps.
pub const IMAGE: &str = "localhost/underpass-test:1";

/// The page that the web server returns for `/`.
pub const PAGE: &str = "hello from a container\n";

/// Writes the image's archive into a folder; returns its path.
pub fn archive(folder: &Path) -> PathBuf {
    let folder = folder.join("image");
    for part in ["root/bin", "root/www", "root/tmp"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    fs::copy(
        runtimes().join("bin/busybox"),
        folder.join("root/bin/busybox"),
    )
    .unwrap();
    fs::write(folder.join("root/www/index.html"), PAGE).unwrap();
    pack(
        &folder,
        IMAGE,
        &json!({ "Entrypoint": ["/bin/busybox", "sleep", "2147483647"] }),
    )
}

/// Writes the archive of an image whose single layer is `root` in the folder. `settings` is the
/// `config` section of the image configuration.
pub fn pack(folder: &Path, name: &str, settings: &Value) -> PathBuf {
    fs::create_dir_all(folder.join("archive")).unwrap();
    tar(&folder.join("root"), &folder.join("archive/layer.tar"));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": settings,
        "rootfs": {
            "type": "layers",
            "diff_ids": [format!("sha256:{}", sha256(&folder.join("archive/layer.tar")))],
        },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(folder.join("archive/config.json"), config.to_string()).unwrap();
    fs::write(folder.join("archive/manifest.json"), manifest.to_string()).unwrap();
    tar(&folder.join("archive"), &folder.join("image.tar"));
    folder.join("image.tar")
}

fn tar(folder: &Path, to: &Path) {
    let status = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .arg("-cf")
        .arg(to)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success(), "tar ended with {status}");
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}
