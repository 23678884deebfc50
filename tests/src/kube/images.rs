//! The images of a cluster, built from programs of this machine, without a registry.

#![allow(clippy::disallowed_types)] // ldd and strip

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
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
/// The image of waypoints, gateways and sidecars, by the name in Istio's manifests.
pub const PROXYV2: &str = "registry.istio.io/testing/proxyv2:latest-distroless";
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

/// Builds the image in which istiod starts waypoints, gateways and sidecars: Istio's agent with a
/// plain Envoy, whose discovery is filtered, and for sidecars iptables.
pub fn proxyv2(folder: &Path) -> PathBuf {
    let folder = folder.join("proxyv2");
    let root = folder.join("root");
    let parts = [
        "usr/local/bin",
        "usr/sbin",
        "var/lib/istio/envoy",
        "etc",
        "tmp",
    ];
    for part in parts {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    let parts = control_plane().join("bin");
    let programs = [
        (parts.join("pilot-agent"), "pilot-agent"),
        (binary("underpass-envoy"), "envoy"),
        (parts.join("envoy"), "envoy-plain"),
    ];
    for (from, name) in &programs {
        fs::copy(from, root.join("usr/local/bin").join(name)).unwrap();
    }
    fs::copy(
        parts.join("envoy_bootstrap.json"),
        root.join("var/lib/istio/envoy/envoy_bootstrap_tmpl.json"),
    )
    .unwrap();
    let users = "root:x:0:0::/:/bin/false\nistio-proxy:x:1337:1337::/:/bin/false\n";
    fs::write(root.join("etc/passwd"), users).unwrap();
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n").unwrap();
    programs[1..]
        .iter()
        .for_each(|(program, _)| add_libraries(&root, program));
    add_iptables(&root);
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    image::pack(
        &folder,
        PROXYV2,
        &json!({
            "Entrypoint": ["/usr/local/bin/pilot-agent"],
            "User": "1337:1337",
            "WorkingDir": "/",
            "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin"],
        }),
    )
}

/// Adds what Istio's init container of a sidecar calls, with its extensions.
fn add_iptables(root: &Path) {
    let program = Path::new("/usr/sbin/xtables-nft-multi");
    let to = root.join("usr/sbin");
    fs::copy(program, to.join("xtables-nft-multi")).unwrap();
    for family in ["iptables", "ip6tables"] {
        for name in ["", "-save", "-restore", "-nft", "-nft-save", "-nft-restore"] {
            let _ = fs::remove_file(to.join(format!("{family}{name}"))); // of an earlier call
            symlink("xtables-nft-multi", to.join(format!("{family}{name}"))).unwrap();
        }
    }
    add_libraries(root, program);
    let triple = format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH);
    let extensions = root.join(triple.trim_start_matches('/'));
    fs::create_dir_all(&extensions).unwrap();
    for file in fs::read_dir(triple).unwrap().flatten() {
        fs::copy(file.path(), extensions.join(file.file_name())).unwrap();
    }
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
    add_libraries(&root, program);
}

/// Adds the libraries of a program to an image's root.
fn add_libraries(root: &Path, program: &Path) {
    let libraries = printed(&Command::new("ldd").arg(program).output().unwrap());
    for library in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}
