//! The images of a cluster, made from programs of this machine: no registry is needed.

#![allow(clippy::disallowed_types)] // ldd and strip

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::node::printed;
use crate::binaries::{binary, control_plane};
use crate::image;

/// The container that holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:1";
/// The application that answers and asks: `underpass-app` of these tests.
pub const APP: &str = "localhost/underpass-app:1";
/// istiod.
pub const ISTIOD: &str = "localhost/istiod:1";
/// Underpass: all of its programs.
pub const UNDERPASS: &str = "localhost/underpass:test";

/// The pause and application images: one program.
pub fn app(folder: &Path) -> Vec<PathBuf> {
    let program = "/bin/underpass-app";
    let of = |name: &str, reference, settings| {
        let folder = folder.join(name);
        add(&folder, &binary("underpass-app"));
        image::pack(&folder, reference, settings)
    };
    vec![
        of("pause", PAUSE, &json!({ "Entrypoint": [program, "pause"] })),
        of("app", APP, &json!({ "Entrypoint": [program], "Env": ["PATH=/bin"] })),
    ]
}

/// istiod, as Istio's manifests expect it.
pub fn istiod(folder: &Path) -> PathBuf {
    let folder = folder.join("istiod");
    for part in ["root/bin", "root/tmp", "root/etc"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    fs::copy(control_plane().join("bin/pilot-discovery"), folder.join("root/bin/pilot-discovery")).unwrap();
    image::pack(&folder, ISTIOD, &json!({ "Entrypoint": ["/bin/pilot-discovery"], "User": "1337" }))
}

/// Underpass as these tests were built, with the libraries that it needs. What is shipped links statically.
pub fn underpass(folder: &Path) -> PathBuf {
    let folder = folder.join("underpass");
    for program in ["underpass", "underpass-agent", "underpass-proxy", "underpass-cni"] {
        add(&folder, &binary(program));
    }
    image::pack(&folder, UNDERPASS, &settings())
}

fn settings() -> Value {
    json!({ "Entrypoint": ["/bin/underpass"], "Env": ["PATH=/bin"] })
}

/// Puts a program and its libraries into an image.
fn add(folder: &Path, program: &Path) {
    let root = folder.join("root");
    for part in ["bin", "tmp", "etc"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    let to = root.join("bin").join(program.file_name().unwrap());
    printed(&Command::new("strip").arg("-o").arg(&to).arg(program).output().unwrap());
    let libraries = printed(&Command::new("ldd").arg(program).output().unwrap());
    for library in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}
