//! The cluster of `scripts/kube`: a real Kubernetes with istiod, in namespaces of its own, until somebody ends it.
//!
//! ```text
//! underpass-kube up [FAMILY]             starts one, and returns when its nodes and istiod are ready
//! underpass-kube demo [FAMILY] [--json]  tells on a cluster of its own what Underpass does
//! underpass-kube down                    ends it; nothing is left
//! underpass-kube images                  the image of the programs beside it, as an archive
//! underpass-kube exec PROGRAM …          runs kubectl, istioctl or helm against it
//! underpass-kube import IMAGE.tar        puts an image on its nodes
//! underpass-kube node NAME PROGRAM …     runs a program on a node
//! ```
//!
//! FAMILY is `--ipv4` or `--ipv6`; without one, pods and nodes have addresses of both.

#![allow(clippy::unwrap_used)] // a tool that cannot go on stops
#![allow(clippy::disallowed_types)] // a cluster is programs

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use underpass_tests::binaries::control_plane;
use underpass_tests::cluster::Families;
use underpass_tests::folder;
use underpass_tests::kube::{Kube, images, missing, story};

/// The last line of a start.
const READY: &str = "ready";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["up"] => up(None),
        ["up", family @ ("--ipv4" | "--ipv6")] => up(Some(family)),
        ["keep"] => keep(Families::Dual),
        ["keep", family] => keep(of_flag(family)),
        ["demo"] => demo(Families::Dual, false),
        ["demo", "--json"] => demo(Families::Dual, true),
        ["demo", family @ ("--ipv4" | "--ipv6")] => demo(of_flag(family), false),
        ["demo", family @ ("--ipv4" | "--ipv6"), "--json"] => demo(of_flag(family), true),
        ["down"] => down(),
        ["images"] => {
            println!("{}", images::underpass(&std::env::temp_dir().join("underpass-image")).display());
            ExitCode::SUCCESS
        }
        ["exec", program, ref rest @ ..] => exec(program, rest),
        ["import", archive] => import(archive),
        ["node", name, ref program @ ..] => node(name, program),
        _ => told(
            "usage: underpass-kube up [--ipv4 | --ipv6] | demo [--ipv4 | --ipv6] [--json] | down | exec PROGRAM … | import IMAGE.tar | node NAME PROGRAM …",
        ),
    }
}

fn of_flag(flag: &str) -> Families {
    if flag == "--ipv4" { Families::V4 } else { Families::V6 }
}

/// Where a running cluster is told of.
fn state() -> PathBuf {
    std::env::temp_dir().join("underpass-kube.json")
}

/// The cluster that runs, if one does.
fn running() -> Option<(Pid, Value)> {
    let state: Value = serde_json::from_slice(&fs::read(state()).ok()?).ok()?;
    let pid = i32::try_from(state["pid"].as_i64()?).ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim_end() == "underpass-kube").then(|| (Pid::from_raw(pid), state))
}

#[allow(clippy::zombie_processes)] // it stays, and this process ends
fn up(family: Option<&str>) -> ExitCode {
    if let Some((pid, _)) = running() {
        return told(&format!("a cluster runs already (process {pid}). Next step: scripts/kube down"));
    }
    if let Some(why) = missing() {
        return told(&format!("no cluster: {why}. Next step: scripts/lib/control-plane cluster"));
    }
    let log = std::env::temp_dir().join("underpass-kube.log");
    let mut keeper = Command::new(std::env::current_exe().unwrap());
    keeper.arg("keep").args(family).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
    keeper.env("RUST_BACKTRACE", "0");
    let mut keeper = keeper.process_group(0).spawn().unwrap(); // Ctrl-C of whoever started it is not for it
    for line in BufReader::new(keeper.stdout.take().unwrap()).lines().map_while(Result::ok) {
        println!("{line}");
        if line == READY {
            return ExitCode::SUCCESS;
        }
    }
    let _ = keeper.wait();
    eprint!("{}", fs::read_to_string(log).unwrap_or_default());
    told("the cluster did not start")
}

/// The process that has the cluster: it ends with this one, however that ends.
fn keep(families: Families) -> ExitCode {
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    ends.thread_block().unwrap();
    let folder = folder::until_exit("kube");
    let kube = Kube::start(&folder, families, &mut |line| say(line));
    let nodes: serde_json::Map<_, _> = kube.nodes.iter().map(|n| (n.name.clone(), json!(n.init()))).collect();
    let told = json!({ "pid": std::process::id(), "folder": folder, "kubeconfig": kube.kubeconfig, "nodes": nodes });
    kube.kubernetes.netns.enter().unwrap(); // those who ask find the namespace by this process
    fs::write(state(), told.to_string()).unwrap();
    say(READY);
    ends.wait().unwrap();
    let _ = fs::remove_file(state());
    ExitCode::SUCCESS
}

/// Each step is told as it is done: as a line of JSON, or for people.
fn demo(families: Families, as_json: bool) -> ExitCode {
    if let Some(why) = missing() {
        return told(&format!("no cluster: {why}. Next step: scripts/lib/control-plane cluster"));
    }
    std::panic::set_hook(Box::new(|_| ())); // a step that stops is told
    let folder = folder::until_exit("kube");
    let started = Instant::now();
    let kube = Kube::start(&folder, families, &mut |line| {
        if !as_json {
            say(line)
        }
    });
    let mut number = 0;
    let ok = story::play(&kube, &mut |told| {
        number += 1;
        if as_json {
            say(&json!({ "step": told.step, "ok": told.ok, "evidence": told.evidence }).to_string());
        } else {
            let (mark, evidence) = (if told.ok { "ok  " } else { "FAIL" }, told.evidence.trim_end());
            say(&format!("{mark} {number:>2}. {}\n       {}", told.step, evidence.replace('\n', "\n       ")));
        }
    });
    drop(kube);
    if as_json {
        say(&json!({ "ok": ok, "steps": number }).to_string());
    } else {
        let took = started.elapsed().as_secs_f64();
        let outcome = if ok { "All as promised" } else { "The last one is not as promised" };
        say(&format!("\n{outcome}, in {took:.0} s. Nothing is left of the cluster."));
    }
    ExitCode::from(u8::from(!ok))
}

fn down() -> ExitCode {
    let Some((pid, state)) = running() else { return ExitCode::SUCCESS };
    kill(pid, Signal::SIGTERM).unwrap();
    let folder = PathBuf::from(state["folder"].as_str().unwrap());
    for _ in 0..300 {
        if !Path::new(&format!("/proc/{pid}")).exists() && !folder.exists() {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    told("the cluster does not end")
}

fn exec(program: &str, arguments: &[&str]) -> ExitCode {
    let Some((pid, state)) = running() else { return told("no cluster runs. Next step: scripts/kube up") };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).arg(control_plane().join("bin").join(program)).args(arguments);
    command.env("KUBECONFIG", state["kubeconfig"].as_str().unwrap());
    told(&format!("{program}: {}", command.exec()))
}

fn import(archive: &str) -> ExitCode {
    let Some((_, state)) = running() else { return told("no cluster runs. Next step: scripts/kube up") };
    let nodes = state["nodes"].as_object().unwrap();
    let import = |init: &Value| {
        let mut command = inside(init);
        let archive = fs::File::open(archive).unwrap(); // by descriptor: the node has another root
        let ctr = control_plane().join("bin/ctr").canonicalize().unwrap();
        command.arg(ctr).args(["--namespace", "k8s.io", "images", "import", "-"]).stdin(archive);
        command.stdout(Stdio::null()).status().unwrap().success()
    };
    ExitCode::from(u8::from(!nodes.values().all(import)))
}

fn node(name: &str, program: &[&str]) -> ExitCode {
    let Some((_, state)) = running() else { return told("no cluster runs. Next step: scripts/kube up") };
    let Some(init) = state["nodes"].get(name) else { return told(&format!("no such node: {name}")) };
    told(&format!("{name}: {}", inside(init).args(program).exec()))
}

/// What enters a node by its first process.
fn inside(init: &Value) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={init}"))
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=/", "--"]);
    command
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

fn told(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
