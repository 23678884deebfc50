//! The sandbox and its demo, by their command line.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use underpass_tests::binaries::{self, binary};
use underpass_tests::sandbox::{MESH, Sandbox, until};
use underpass_tests::skip::skip;

/// A folder that is removed with the value, with the sandbox in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = underpass_tests::folder::folder(name);
        Self(folder)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("underpass"));
        command
            .arg("sandbox")
            .args(args)
            .env("UNDERPASS_SANDBOX_DIR", self.0.join("box"));
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Processes with this folder in their command line or environment.
fn processes_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_str().unwrap();
    let holds = |pid: &str, file: &str| {
        fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|b| String::from_utf8_lossy(&b).contains(needle))
    };
    let pids = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok());
    pids.filter(|p| p.bytes().all(|b| b.is_ascii_digit()) && *p != std::process::id().to_string())
        .filter(|p| holds(p, "cmdline") || holds(p, "environ"))
        .collect()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn every_step_of_the_sandbox_demo_succeeds_and_nothing_is_left() {
    let folder = Folder::new("demo");
    let output = folder.run(&["demo", "--json"]);
    let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let (last, steps) = lines.split_last().unwrap();
    for step in steps {
        assert_eq!(step["ok"], true, "{step}");
        assert!(!step["evidence"].as_str().unwrap().is_empty(), "{step}");
    }
    assert_eq!(
        *last,
        serde_json::json!({ "ok": true, "steps": steps.len(), "failed": 0 })
    );
    assert!(steps.len() >= 12);
    assert!(output.status.success());
    assert_eq!(
        fs::read_dir(&folder.0).unwrap().count(),
        0,
        "the demo left files"
    );
    assert_eq!(processes_of(&folder.0), [""; 0]);
}

#[test]
fn a_killed_demo_leaves_nothing() {
    let folder = Folder::new("killed-demo");
    let mut demo = folder
        .command(&["demo"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the demo's sandbox is up", || {
        let made = fs::read_dir(&folder.0).unwrap().flatten().next()?;
        made.path().join("sandbox.json").exists().then_some(())
    });
    demo.kill().unwrap();
    demo.wait().unwrap();
    until("everything is removed", || {
        (fs::read_dir(&folder.0).unwrap().count() == 0 && processes_of(&folder.0).is_empty())
            .then_some(())
    });
}

#[test]
fn up_status_exec_and_down() {
    let folder = Folder::new("up");
    let up = folder.run(&["up"]);
    assert!(up.status.success(), "{}", text(&up));
    let again = folder.run(&["up"]);
    assert!(
        !again.status.success() && text(&again).contains("UP-BOX-002"),
        "{}",
        text(&again)
    );

    let status: Value = serde_json::from_slice(&folder.run(&["status", "--json"]).stdout).unwrap();
    let pods: Vec<(&str, &str, &str)> = status["pods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            (
                p["name"].as_str().unwrap(),
                p["node"].as_str().unwrap(),
                p["state"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("client", "node-1", "enrolled"),
        ("neighbour", "node-1", "enrolled"),
        ("server", "node-2", "enrolled"),
        ("outsider", "node-1", "skipped"),
    ];
    assert_eq!(pods, expected);
    for node in status["nodes"].as_array().unwrap() {
        for key in ["netns", "cni_bin_dir", "cni_conf_dir", "agent_socket"] {
            assert!(Path::new(node[key].as_str().unwrap()).exists(), "{key}");
        }
        for key in ["agent_pid", "proxy_pid"] {
            assert!(
                Path::new("/proc").join(node[key].to_string()).exists(),
                "{key}"
            );
        }
    }

    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let inside = folder.run(&["exec", "client", "--", "readlink", "/proc/self/ns/net"]);
    assert_ne!(
        String::from_utf8_lossy(&inside.stdout).trim(),
        own.to_str().unwrap()
    );
    let unknown = folder.run(&["exec", "unknown", "--", "true"]);
    assert!(
        !unknown.status.success() && text(&unknown).contains("UP-BOX-004"),
        "{}",
        text(&unknown)
    );
    assert_eq!(
        folder
            .run(&["exec", "outside/outsider", "--", "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );

    assert!(folder.run(&["down"]).status.success());
    assert!(!folder.0.join("box").exists());
    until("all processes have exited", || {
        processes_of(&folder.0).is_empty().then_some(())
    });
    let stopped = folder.run(&["status"]);
    assert!(
        !stopped.status.success() && text(&stopped).contains("UP-BOX-003"),
        "{}",
        text(&stopped)
    );
    assert!(folder.run(&["down"]).status.success(), "down is idempotent");
}

#[test]
fn a_killed_up_leaves_nothing() {
    for delay in [20, 80, 150] {
        let folder = Folder::new(&format!("killed-up-{delay}"));
        let mut up = folder
            .command(&["up", "--foreground"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay)); // at some point during the start
        up.kill().unwrap();
        up.wait().unwrap();
        until("everything is removed", || {
            (!folder.0.join("box/sandbox.json").exists() && processes_of(&folder.0).is_empty())
                .then_some(())
        });
        assert!(!folder.0.join("box/netns").exists());
    }
}

#[test]
fn a_mesh_file_with_a_typo_is_rejected_with_line_and_field() {
    let folder = Folder::new("typo");
    let file = folder.0.join("mesh.yaml");
    let typo = MESH.replace("workloadIps: [10.77.1.3", "workloadIp: [10.77.1.3");
    fs::write(&file, &typo).unwrap();
    let line = 1 + typo
        .lines()
        .position(|l| l.contains("workloadIp:"))
        .unwrap();
    let up = folder.run(&["up", "--file", file.to_str().unwrap()]);
    let error = text(&up);
    assert!(
        !up.status.success() && error.contains("workloadIp"),
        "{error}"
    );
    assert!(
        error.contains(&format!("line {line}")) && error.contains("UP-MESH-002"),
        "{error}"
    );
    let missing = folder.run(&["up", "--file", "/nowhere/mesh.yaml"]);
    assert!(text(&missing).contains("UP-MESH-001"), "{}", text(&missing));
    assert!(!folder.0.join("box/sandbox.json").exists());
    until("no process is left", || {
        processes_of(&folder.0).is_empty().then_some(())
    });
}

#[test]
fn a_typo_in_a_running_mesh_keeps_the_previous_mesh_active() {
    let sandbox = Sandbox::up("running-typo");
    sandbox.set_mesh(&MESH.replace("serviceAccount: neighbour", "serviceAcount: neighbour"));
    for (node, of) in [
        ("node-1", "agent"),
        ("node-1", "proxy"),
        ("node-2", "proxy"),
    ] {
        // The error shows lines of the file, so that its fields are on several lines of the log.
        let parts = [
            "UP-MESH-002",
            "serviceAcount",
            "event=\"mesh_file_rejected\"",
        ];
        until("the typo is logged", || {
            let log = sandbox.log(node, of);
            parts.iter().all(|part| log.contains(part)).then_some(())
        });
    }
    let (status, dump) = sandbox.get("node-1", "127.0.0.1:15000", "/config_dump");
    assert_eq!(status, 200);
    let dump: Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["workloads"].as_array().unwrap().len(), 4);
}

#[test]
fn killing_the_keeper_ends_the_sandbox_and_the_next_up_starts_a_new_one() {
    let folder = Folder::new("killed-keeper");
    assert!(folder.run(&["up"]).status.success());
    let status: Value = serde_json::from_slice(&folder.run(&["status", "--json"]).stdout).unwrap();
    let keeper = i32::try_from(status["keeper_pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(keeper),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    until("agents and proxies exit", || {
        processes_of(&folder.0).is_empty().then_some(())
    });
    assert!(text(&folder.run(&["status"])).contains("UP-BOX-003"));
    let again = folder.run(&["up"]);
    assert!(again.status.success(), "{}", text(&again));
}

#[test]
fn without_root_the_sandbox_runs_in_a_user_namespace() {
    use std::os::unix::fs::chown;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    if fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|n| n.trim() == "0") {
        skip("user namespaces are switched off");
        return;
    }
    let folder = Folder::new("rootless");
    chown(&folder.0, Some(NOBODY), Some(NOBODY)).unwrap();
    // Other users may have no access to the folder of the programs.
    for name in [
        "underpass",
        "underpass-agent",
        "underpass-proxy",
        "underpass-cni",
    ] {
        let (from, to) = (binary(name), folder.0.join(name));
        fs::hard_link(&from, &to).unwrap_or_else(|_| binaries::copy(&from, &to));
    }
    let run = |args: &[&str]| {
        let mut command = Command::new(folder.0.join("underpass"));
        command
            .arg("sandbox")
            .args(args)
            .env("UNDERPASS_SANDBOX_DIR", folder.0.join("box"));
        command.uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let up = run(&["up"]);
    assert!(up.status.success(), "{}", text(&up));
    let status: Value = serde_json::from_slice(&run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["pods"][0]["state"], "enrolled", "{status}");
    let inside = run(&["exec", "client", "--", "cat", "/proc/net/tcp6"]);
    let listening = String::from_utf8_lossy(&inside.stdout).to_lowercase();
    assert!(
        listening.contains(":3a99 "),
        "the proxy listens on 15001 in the pod: {listening}"
    );
    assert!(run(&["down"]).status.success());
    assert!(!folder.0.join("box").exists());
}

#[test]
fn sandbox_status_reports_the_agents_current_state() {
    let folder = Folder::new("status-now");
    assert!(folder.run(&["up"]).status.success());
    let status =
        || serde_json::from_slice::<Value>(&folder.run(&["status", "--json"]).stdout).unwrap();
    let before = status();
    // A DEL from outside the sandbox, like that of cnitool.
    let conf_dir = before["nodes"][0]["cni_conf_dir"].as_str().unwrap();
    let conflist: Value = serde_json::from_slice(
        &fs::read(Path::new(conf_dir).join("10-underpass-sandbox.conflist")).unwrap(),
    )
    .unwrap();
    let mut config = conflist["plugins"][1].clone();
    config["cniVersion"] = conflist["cniVersion"].clone();
    config["name"] = conflist["name"].clone();
    let netns = before["pods"][0]["netns"].as_str().unwrap();
    let id: String = "default/client"
        .bytes()
        .map(|b| format!("{b:02x}"))
        .collect();
    let del = underpass_tests::cni::Call::new("DEL", netns, &config)
        .with("CNI_CONTAINERID", Some(&format!("{id:0<64}")));
    assert!(del.run().status.success());
    let after = status();
    assert_eq!(
        (&after["pods"][0]["name"], &after["pods"][0]["state"]),
        (&"client".into(), &"failed".into()),
        "{after}"
    );
    // The agent is killed.
    let agent = i32::try_from(after["nodes"][1]["agent_pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    until("status reports it", || {
        status()["pods"][2]["reason"]
            .as_str()?
            .contains("UP-CLI-001")
            .then_some(())
    });
}
