//! The cluster of `scripts/kube`: a real Kubernetes with istiod, in its own namespaces, until it is
//! stopped.
//!
//! ```text
//! underpass-kube up [FAMILY] [ENVOY…]    starts a cluster; returns when its nodes and istiod are
//!                                        ready
//! underpass-kube demo [FAMILY] [--json]  runs the demo on its own cluster
//! underpass-kube down                    stops the cluster; nothing is left
//! underpass-kube images                  builds an image archive of the programs beside it
//! underpass-kube exec PROGRAM …          runs kubectl, istioctl or helm against it
//! underpass-kube import IMAGE.tar        imports an image on its nodes
//! underpass-kube node NAME PROGRAM …     runs a program on a node
//! ```
//!
//! FAMILY is `--ipv4` or `--ipv6`; the default is dual-stack. ENVOY is `--waypoint` or `--ingress`,
//! a Gateway of that name in namespace `default`, or `--sidecar`: istiod may inject sidecars.

#![allow(clippy::unwrap_used)] // a tool that cannot continue panics
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
use underpass_tests::kube::gateways::{self, WaypointFor};
use underpass_tests::kube::{Kube, demo, images, missing};

/// The line that is printed when the cluster is ready.
const READY: &str = "ready";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["up", ref flags @ ..] if ClusterOptions::parse(flags).is_some() => up(flags),
        ["keep", ref flags @ ..] => ClusterOptions::parse(flags).map_or(ExitCode::FAILURE, keep),
        ["demo"] => run_demo(Families::Dual, false),
        ["demo", "--json"] => run_demo(Families::Dual, true),
        ["demo", family @ ("--ipv4" | "--ipv6")] => run_demo(of_flag(family), false),
        ["demo", family @ ("--ipv4" | "--ipv6"), "--json"] => run_demo(of_flag(family), true),
        ["down"] => down(),
        ["images"] => {
            println!(
                "{}",
                images::underpass(&std::env::temp_dir().join("underpass-image")).display()
            );
            ExitCode::SUCCESS
        }
        ["exec", program, ref rest @ ..] => exec(program, rest),
        ["import", archive] => import(archive),
        ["node", name, ref program @ ..] => node(name, program),
        _ => fail(
            "usage: underpass-kube up [--ipv4 | --ipv6] [--waypoint] [--ingress] [--sidecar] | \
             demo [--ipv4 | --ipv6] [--json] | down | exec PROGRAM … | import IMAGE.tar | \
             node NAME PROGRAM …",
        ),
    }
}

/// What a cluster consists of.
#[derive(Debug, Clone, Copy)]
struct ClusterOptions {
    families: Families,
    waypoint: bool,
    ingress: bool,
    sidecar: bool,
}

impl ClusterOptions {
    /// From the flags of `up`; `None` if one is unknown.
    fn parse(flags: &[&str]) -> Option<Self> {
        let mut options = Self {
            families: Families::Dual,
            waypoint: false,
            ingress: false,
            sidecar: false,
        };
        for flag in flags {
            match *flag {
                "--ipv4" | "--ipv6" => options.families = of_flag(flag),
                "--waypoint" => options.waypoint = true,
                "--ingress" => options.ingress = true,
                "--sidecar" => options.sidecar = true,
                _ => return None,
            }
        }
        Some(options)
    }

    /// Whether an Envoy is a part of it.
    fn has_envoy(self) -> bool {
        self.waypoint || self.ingress || self.sidecar
    }

    /// What this machine lacks for it.
    fn missing(self) -> Option<String> {
        if self.has_envoy() {
            gateways::missing()
        } else {
            missing()
        }
    }
}

fn of_flag(flag: &str) -> Families {
    if flag == "--ipv4" {
        Families::V4
    } else {
        Families::V6
    }
}

/// The file that describes the running cluster.
fn state() -> PathBuf {
    std::env::temp_dir().join("underpass-kube.json")
}

/// The running cluster, if there is one.
fn running() -> Option<(Pid, Value)> {
    let state: Value = serde_json::from_slice(&fs::read(state()).ok()?).ok()?;
    let pid = i32::try_from(state["pid"].as_i64()?).ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim_end() == "underpass-kube").then(|| (Pid::from_raw(pid), state))
}

#[allow(clippy::zombie_processes)] // it outlives this process
fn up(flags: &[&str]) -> ExitCode {
    if let Some((pid, _)) = running() {
        return fail(&format!(
            "a cluster is already running (process {pid}). Next step: scripts/kube down"
        ));
    }
    let options = ClusterOptions::parse(flags);
    if let Some(why) = options.and_then(ClusterOptions::missing) {
        return fail(&format!(
            "cannot start a cluster: {why}. Next step: scripts/lib/control-plane gateways"
        ));
    }
    let log = std::env::temp_dir().join("underpass-kube.log");
    let mut keeper = Command::new(std::env::current_exe().unwrap());
    keeper
        .arg("keep")
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).unwrap());
    keeper.env("RUST_BACKTRACE", "0");
    let mut keeper = keeper.process_group(0).spawn().unwrap(); // Ctrl-C must not end it
    for line in BufReader::new(keeper.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
    {
        println!("{line}");
        if line == READY {
            return ExitCode::SUCCESS;
        }
    }
    let _ = keeper.wait();
    eprint!("{}", fs::read_to_string(log).unwrap_or_default());
    fail("the cluster did not start")
}

/// Runs the cluster in this process; it ends with the process.
fn keep(options: ClusterOptions) -> ExitCode {
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    ends.thread_block().unwrap();
    let folder = folder::until_exit("kube");
    let started = Instant::now();
    let kube = Kube::start(&folder, options.families, &mut |line| say(line));
    add_envoys(&kube, options, &mut |part| {
        say(&format!(
            "{:5.1} s  {part}",
            started.elapsed().as_secs_f64()
        ));
    });
    let nodes: serde_json::Map<_, _> = kube
        .nodes
        .iter()
        .map(|n| (n.name.clone(), json!(n.init())))
        .collect();
    let description = json!({
        "pid": std::process::id(),
        "folder": folder,
        "kubeconfig": kube.kubeconfig,
        "nodes": nodes,
    });
    kube.kubernetes.netns.enter().unwrap(); // other commands enter this process's network namespace
    fs::write(state(), description.to_string()).unwrap();
    say(READY);
    ends.wait().unwrap();
    let _ = fs::remove_file(state());
    ExitCode::SUCCESS
}

/// Adds what the options ask for, once the cluster runs.
fn add_envoys(kube: &Kube, options: ClusterOptions, report: &mut dyn FnMut(&str)) {
    const NAMESPACE: &str = "default";
    if options.has_envoy() {
        kube.import_envoy();
        kube.log_envoys_access();
        report("image of Envoy");
    }
    if options.waypoint {
        kube.create_waypoint(NAMESPACE, "waypoint", WaypointFor::Service);
        kube.await_gateway(NAMESPACE, "waypoint");
        report("waypoint default/waypoint ready: label services istio.io/use-waypoint=waypoint");
    }
    if options.ingress {
        kube.create_ingress(NAMESPACE, "ingress");
        kube.await_gateway(NAMESPACE, "ingress");
        report("gateway default/ingress ready, at service default/ingress-istio");
    }
    if options.sidecar {
        kube.enable_sidecars();
        report("sidecars in namespaces with the label istio-injection=enabled");
    }
}

/// Prints each step when it is done: as a line of JSON, or for people.
fn run_demo(families: Families, as_json: bool) -> ExitCode {
    if let Some(why) = missing() {
        return fail(&format!(
            "cannot start a cluster: {why}. Next step: scripts/lib/control-plane cluster"
        ));
    }
    std::panic::set_hook(Box::new(|_| ())); // failed steps are reported below
    let folder = folder::until_exit("kube");
    let started = Instant::now();
    let kube = Kube::start(&folder, families, &mut |line| {
        if !as_json {
            say(line)
        }
    });
    let mut number = 0;
    let ok = demo::run(&kube, &mut |report| {
        number += 1;
        if as_json {
            say(
                &json!({ "step": report.step, "ok": report.ok, "evidence": report.evidence })
                    .to_string(),
            );
        } else {
            let (mark, evidence) = (
                if report.ok { "ok  " } else { "FAIL" },
                report.evidence.trim_end(),
            );
            say(&format!(
                "{mark} {number:>2}. {}\n       {}",
                report.step,
                evidence.replace('\n', "\n       ")
            ));
        }
    });
    drop(kube);
    if as_json {
        say(&json!({ "ok": ok, "steps": number }).to_string());
    } else {
        let took = started.elapsed().as_secs_f64();
        let outcome = if ok {
            "All steps succeeded"
        } else {
            "The last step failed"
        };
        say(&format!(
            "\n{outcome} in {took:.0} s. The cluster has been removed."
        ));
    }
    ExitCode::from(u8::from(!ok))
}

fn down() -> ExitCode {
    let Some((pid, state)) = running() else {
        return ExitCode::SUCCESS;
    };
    kill(pid, Signal::SIGTERM).unwrap();
    let folder = PathBuf::from(state["folder"].as_str().unwrap());
    for _ in 0..300 {
        if !Path::new(&format!("/proc/{pid}")).exists() && !folder.exists() {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    fail("the cluster did not stop within 30 s")
}

fn exec(program: &str, arguments: &[&str]) -> ExitCode {
    let Some((pid, state)) = running() else {
        return fail("no cluster is running. Next step: scripts/kube up");
    };
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg(control_plane().join("bin").join(program))
        .args(arguments);
    command.env("KUBECONFIG", state["kubeconfig"].as_str().unwrap());
    fail(&format!("{program}: {}", command.exec()))
}

fn import(archive: &str) -> ExitCode {
    let Some((_, state)) = running() else {
        return fail("no cluster is running. Next step: scripts/kube up");
    };
    let nodes = state["nodes"].as_object().unwrap();
    let import = |init: &Value| {
        let mut command = inside(init);
        // By descriptor, as the node has another root.
        let archive = fs::File::open(archive).unwrap();
        let ctr = control_plane().join("bin/ctr").canonicalize().unwrap();
        command
            .arg(ctr)
            .args(["--namespace", "k8s.io", "images", "import", "-"])
            .stdin(archive);
        command.stdout(Stdio::null()).status().unwrap().success()
    };
    ExitCode::from(u8::from(!nodes.values().all(import)))
}

fn node(name: &str, program: &[&str]) -> ExitCode {
    let Some((_, state)) = running() else {
        return fail("no cluster is running. Next step: scripts/kube up");
    };
    let Some(init) = state["nodes"].get(name) else {
        return fail(&format!("no such node: {name}"));
    };
    fail(&format!("{name}: {}", inside(init).args(program).exec()))
}

/// A command that enters a node's namespaces.
fn inside(init: &Value) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={init}")).args([
        "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=/", "--",
    ]);
    command
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
