//! Installation, upgrade, rollback and uninstallation by helm, while pods run and start.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::kube::app::App;
use underpass_tests::kube::underpass::{AGENTS, RELEASE};
use underpass_tests::kube::{Kube, missing, until};
use underpass_tests::skip::skip;

const SPACE: &str = "releases";

fn launch(kube: &Kube, name: &str, node: &str) {
    kube.launch(&[App {
        namespace: SPACE,
        name,
        node: Some(node),
        labels: Value::Null,
    }]);
}

/// Prints the agents' logs when the test fails.
struct LogOnFailure<'a>(&'a Kube);

impl Drop for LogOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let agents = [
                "logs",
                "-n",
                NAMESPACE,
                "-l",
                "k8s-app=underpass-cni-node",
                "--prefix",
                "--tail=60",
            ];
            for arguments in [&agents[..], &["get", "pods", "-A", "-o", "wide"]] {
                let output = self.0.command("kubectl").args(arguments).output().unwrap();
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
        }
    }
}

/// Whether every node has the plugin, chained in its runtime's configuration.
fn plugin_is_everywhere(kube: &Kube) -> bool {
    kube.nodes.iter().all(|node| {
        let list = fs::read_to_string(node.path("/etc/cni/net.d/10-network.conflist")).unwrap();
        list.contains("underpass-cni") && node.path("/opt/cni/bin/underpass-cni").exists()
    })
}

/// Runs helm on the release; returns whether it succeeded.
fn helm(kube: &Kube, arguments: &[&str]) -> bool {
    let mut command = kube.command("helm");
    command
        .args(arguments)
        .args(["--namespace", NAMESPACE, "--wait"]);
    command.output().unwrap().status.success()
}

/// The number of ready agents.
fn ready_agents(kube: &Kube) -> u64 {
    let set = kube
        .get(&format!(
            "/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{AGENTS}"
        ))
        .unwrap();
    set["status"]["numberReady"].as_u64().unwrap_or_default()
}

#[test]
fn releases_are_installed_upgraded_and_uninstalled_under_running_pods() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let kube = Kube::exclusive();
    let _log = LogOnFailure(&kube);
    kube.import_underpass();
    kube.namespace(SPACE, true);
    launch(&kube, "older", "node-1");
    kube.install_underpass(&[]);
    kube.await_enrolled(SPACE, "older", true);

    // Pods start on both nodes during the upgrade, and the plugin is never missing.
    let over = AtomicBool::new(false);
    let started = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| {
            kube.install_underpass(&["cni.logging.level=debug", "ztunnel.logLevel=debug"]);
            over.store(true, Ordering::Relaxed);
        });
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(
                    plugin_is_everywhere(&kube),
                    "the plugin was missing during an upgrade"
                );
                std::thread::sleep(Duration::from_millis(5)); // between two checks
            }
        });
        let mut started = vec!["older".to_owned()];
        while !over.load(Ordering::Relaxed) && !upgrade.is_finished() {
            let name = format!("pod-{}", started.len());
            launch(
                &kube,
                &name,
                if started.len() % 2 == 0 {
                    "node-1"
                } else {
                    "node-2"
                },
            );
            started.push(name);
        }
        upgrade.join().unwrap();
        watch.join().unwrap();
        started
    });
    assert!(started.len() > 1);
    for pod in &started {
        kube.await_enrolled(SPACE, pod, true);
    }

    // A broken upgrade stops at the first node and is rolled back.
    let chart = underpass_tests::kube::underpass::chart();
    let broken = [
        "upgrade",
        RELEASE,
        chart.to_str().unwrap(),
        "--reuse-values",
        "--set",
        "cni.image=localhost/none:1",
    ];
    assert!(!helm(&kube, &[&broken[..], &["--timeout", "10s"]].concat()));
    assert_eq!(ready_agents(&kube), 1);
    assert!(plugin_is_everywhere(&kube));
    assert!(helm(&kube, &["rollback", RELEASE, "--timeout", "90s"]));
    kube.await_rollout(AGENTS); // helm does not wait for the last one

    kube.uninstall_underpass();
    assert!(started.iter().all(|pod| !kube.enrolled(SPACE, pod)));
    let left: Vec<String> = kube
        .nodes
        .iter()
        .flat_map(|node| kube.leftovers_on(node))
        .collect();
    assert_eq!(left, [""; 0]);
    let [v4, v6] = kube.service(SPACE, "pod-1");
    kube.await_answer(SPACE, "older", &[&v4, &v6]);
    launch(&kube, "after", "node-2");

    kube.install_underpass(&[]);
    for pod in started.iter().map(String::as_str).chain(["after"]) {
        kube.await_enrolled(SPACE, pod, true);
    }
    kube.uninstall_underpass();
    kube.kubectl(&["delete", "namespace", SPACE, "--wait=false"]);
    until("the last proxy has ended", || {
        let pods = kube.get(&format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3Dztunnel"
        ))?;
        pods["items"].as_array()?.is_empty().then_some(())
    });
}
