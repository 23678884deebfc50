//! The image that `scripts/images` builds: its contents, and that its programs run without other
//! files.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hickory_proto::op::Message;
use netns::NetNs;
use netns::process::{die_with_parent, in_netns};
use underpass_tests::binaries::image;
use underpass_tests::containerd::{self, Containerd};
use underpass_tests::folder::folder;
use underpass_tests::iptables::run;
use underpass_tests::name_server::{ANSWER, NameServer};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::until;
use underpass_tests::skip::skip;

const NAME: &str = concat!("localhost/underpass:", env!("CARGO_PKG_VERSION"));
const PROGRAMS: [&str; 4] = [
    "underpass",
    "underpass-agent",
    "underpass-cni",
    "underpass-proxy",
];

/// A root folder that contains only the image's single layer.
fn unpacked(name: &str, image: &Path) -> PathBuf {
    let folder = folder(name);
    let tar = |archive: &Path, to: &Path| {
        fs::create_dir_all(to).unwrap();
        assert!(
            Command::new("tar")
                .arg("-C")
                .arg(to)
                .arg("-xf")
                .arg(archive)
                .status()
                .unwrap()
                .success()
        );
    };
    tar(image, &folder.join("archive"));
    let root = folder.join("root");
    tar(&folder.join("archive/layer.tar"), &root);
    root
}

fn within(root: &Path, program: &str) -> Command {
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .arg(Path::new("/bin").join(program))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

#[test]
fn the_image_holds_the_four_programs_and_they_run_in_an_empty_root() {
    let image = match image() {
        Ok(image) => image,
        Err(why) => return skip(&why),
    };
    let root = unpacked("image", &image);
    let mut programs: Vec<_> = fs::read_dir(root.join("bin"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    programs.sort();
    assert_eq!(programs, PROGRAMS);
    for program in PROGRAMS.into_iter().filter(|p| *p != "underpass-cni") {
        let output = within(&root, program).arg("--version").output().unwrap();
        let expected = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expected,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let plugin = within(&root, "underpass-cni")
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&plugin.stdout).contains("supportedVersions"));
}

/// The image has no resolver library, only `/etc/resolv.conf` as a kubelet writes it.
#[test]
fn the_proxy_of_the_image_finds_istiod_by_name() {
    let image = match image() {
        Ok(image) => image,
        Err(why) => return skip(&why),
    };
    let root = unpacked("image-names", &image);
    fs::create_dir_all(root.join("etc")).unwrap();
    let resolution = "nameserver 127.0.0.1\nsearch cluster.local\noptions ndots:5\n";
    fs::write(root.join("etc/resolv.conf"), resolution).unwrap();
    let netns = NetNs::create().unwrap();
    run(
        &netns,
        "ip",
        "-batch -",
        &format!("link set lo up\naddress add {ANSWER}/32 dev lo\n"),
    );
    let names = NameServer::start(&netns, &[Ipv4Addr::LOCALHOST.into()]);
    let istiod = netns
        .run(|| TcpListener::bind((ANSWER, 15012)))
        .unwrap()
        .unwrap();
    istiod.set_nonblocking(true).unwrap();
    let certificate = rcgen::generate_simple_self_signed(["istiod.istio-system.svc".to_owned()])
        .unwrap()
        .cert;
    fs::write(root.join("root.pem"), certificate.pem()).unwrap();

    let mut proxy = within(&root, "underpass-proxy");
    proxy.args([
        "proxy",
        "ztunnel",
        "--xds-address",
        "https://istiod.istio-system.svc:15012",
        "--ca-address",
        "",
    ]);
    proxy.args(["--xds-root-ca", "/root.pem", "--ca-dir", "/tmp/ca"]);
    proxy.stdout(Stdio::null()).stderr(Stdio::null());
    let mut proxy = die_with_parent(in_netns(&mut proxy, &netns).unwrap())
        .spawn()
        .unwrap();
    until("the proxy connects to the resolved address", || {
        istiod.accept().ok()
    });
    let queried = |bytes: &[u8]| {
        Message::from_vec(bytes).unwrap().queries[0]
            .name()
            .to_string()
    };
    let queried: Vec<String> = names
        .seen()
        .iter()
        .map(|(_, bytes)| queried(bytes))
        .collect();
    assert!(
        queried.contains(&"istiod.istio-system.svc.cluster.local.".to_owned()),
        "{queried:?}"
    );
    proxy.kill().unwrap();
    proxy.wait().unwrap();
}

#[test]
fn containerd_imports_the_image_and_runs_it() {
    let image = match (image(), containerd::missing()) {
        (Ok(image), None) => image,
        (Err(why), _) | (_, Some(why)) => return skip(&why),
    };
    let node = TestNode::new("image-containerd", "{}");
    let containerd = Containerd::start(&node, 4);
    containerd.import(&image, NAME);
    let pod = containerd.pod("default", "static");
    let sandbox = containerd.cri.run_pod_sandbox(&pod).unwrap();
    containerd
        .cri
        .run_container(&sandbox, &pod, NAME, &["/bin/underpass-agent", "--version"])
        .unwrap();
    let expected = format!("underpass-agent {}", env!("CARGO_PKG_VERSION"));
    let log = node.file(&format!("containerd/logs/{sandbox}.log"));
    until("the program prints its version", || {
        fs::read_to_string(&log)
            .ok()?
            .contains(&expected)
            .then_some(())
    });
    containerd.cri.remove_pod_sandbox(&sandbox).unwrap();
}
