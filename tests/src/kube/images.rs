//! The images of a cluster, built from programs of this machine, without a registry.

#![allow(clippy::disallowed_types)] // ldd and strip

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::node::printed;
use crate::binaries::{binary, control_plane};
use crate::image;

/// The image of the container that holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:1";
/// The image of the test application `underpass-app`.
pub const APP: &str = "localhost/underpass-app:1";
/// The image of istiod.
pub const ISTIOD: &str = "localhost/istiod:1";
/// The image of all of Underpass's programs.
pub const UNDERPASS: &str = "localhost/underpass:test";

/// Builds the pause and application images, which contain the same program.
pub fn app(folder: &Path) -> Vec<PathBuf> {
    let program = "/bin/underpass-app";
    let of = |name: &str, reference, settings| {
        let folder = folder.join(name);
        add(&folder, &binary("underpass-app"));
        image::pack(&folder, reference, settings)
    };
    vec![
        of("pause", PAUSE, &json!({ "Entrypoint": [program, "pause"] })),
        of(
            "app",
            APP,
            &json!({ "Entrypoint": [program], "Env": ["PATH=/bin"] }),
        ),
    ]
}

/// Builds the istiod image that Istio's manifests expect.
pub fn istiod(folder: &Path) -> PathBuf {
    let folder = folder.join("istiod");
    for part in ["root/bin", "root/tmp", "root/etc"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    fs::copy(
        control_plane().join("bin/pilot-discovery"),
        folder.join("root/bin/pilot-discovery"),
    )
    .unwrap();
    image::pack(
        &folder,
        ISTIOD,
        &json!({ "Entrypoint": ["/bin/pilot-discovery"], "User": "1337" }),
    )
}

/// Builds an image of the programs of this build with their libraries. Released programs are linked
/// statically.
pub fn underpass(folder: &Path) -> PathBuf {
    let folder = folder.join("underpass");
    for program in [
        "underpass",
        "underpass-agent",
        "underpass-proxy",
        "underpass-cni",
    ] {
        add(&folder, &binary(program));
    }
    image::pack(&folder, UNDERPASS, &settings())
}

fn settings() -> Value {
    json!({ "Entrypoint": ["/bin/underpass"], "Env": ["PATH=/bin"] })
}

/// Adds a program and its libraries to an image.
fn add(folder: &Path, program: &Path) {
    let root = folder.join("root");
    for part in ["bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    let to = root.join("bin").join(program.file_name().unwrap());
    printed(
        &Command::new("strip")
            .arg("-o")
            .arg(&to)
            .arg(program)
            .output()
            .unwrap(),
    );
    let libraries = printed(&Command::new("ldd").arg(program).output().unwrap());
    for library in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}
