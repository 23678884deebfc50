//! The CNI plugin, run as a container runtime runs it, against an agent that says what the test wants.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

use std::process::Output;
use std::time::Duration;

use handoff::{FromAgent, FromPlugin};
use nix::sys::signal::{Signal, kill};
use redirect::{Plan, diff, read_back};
use serde_json::{Value, json};
use underpass_tests::cni::{Call, FakeAgent, Plugin, config, path_of};
use underpass_tests::wire::{POD4, POD6, Wire};

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn plan() -> Plan {
    Plan::for_pod([POD4, POD6])
}

/// Standard output of a call that worked.
fn output(done: &Output) -> String {
    assert!(done.status.success(), "{} {}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

/// The number and the message of a call that failed, which must be one JSON object with details.
fn error(done: &Output) -> (u64, String) {
    assert!(!done.status.success());
    let error: Value = serde_json::from_slice(&done.stdout).expect("standard output is one JSON value");
    assert!(error["details"].as_str().unwrap().contains("Next step: "), "{error}");
    assert!(error["cniVersion"].is_string(), "{error}");
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn nothing_of_ours(wire: &Wire) -> bool {
    wire.pod.run(read_back).unwrap().unwrap().is_empty()
}

fn refusal(retry: bool) -> FromAgent {
    let (code, why) = ("UP-AGENT-999".to_owned(), "the proxy refuses".to_owned());
    FromAgent::Failed { code, why, next_step: "look at the proxy".to_owned(), retry }
}

/// Starts an ADD and lets the agent play its part; returns what the plugin printed.
fn add(wire: &Wire, name: &str, play: impl FnOnce(Plugin)) -> Output {
    let agent = FakeAgent::new(name);
    let call = Call::new("ADD", &path_of(&wire.pod), &config(&agent.socket, &ADDRESSES)).start();
    play(agent.accept());
    call.wait_with_output().unwrap()
}

#[test]
fn add_enrols_the_pod_and_passes_the_result_on() {
    let wire = Wire::new();
    let done = add(&wire, "enrols", |plugin| {
        let (message, netns) = plugin.receive().unwrap();
        let FromPlugin::Add { pod, addresses, .. } = message else { panic!("{message:?}") };
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()),
            ("default", "client", Some("uid-1"))
        );
        assert_eq!(addresses, [POD4, POD6]);
        assert_eq!(netns.unwrap().id(), wire.pod.id());
        plugin.send(&FromAgent::Enrol { plan: Box::new(plan()) });
        assert_eq!(plugin.receive().unwrap().0, FromPlugin::Installed);
        assert_eq!(diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()), []);
        plugin.send(&FromAgent::Ready);
    });
    let expected = config(std::path::Path::new("/"), &ADDRESSES)["prevResult"].to_string();
    assert_eq!(output(&done).trim_end(), expected, "prevResult, byte for byte");
    assert_eq!(diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()), []);
}

#[test]
fn add_leaves_a_pod_outside_the_mesh_alone() {
    let wire = Wire::new();
    let done = add(&wire, "skips", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Skip { reason: "opted out".into() });
    });
    output(&done);
    assert!(text(&done.stderr).contains("opted out"));
    assert!(nothing_of_ours(&wire));
}

#[test]
fn an_excluded_namespace_needs_no_agent() {
    let wire = Wire::new();
    let mut config = config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    config["excludeNamespaces"] = json!(["default"]);
    output(&Call::new("ADD", &path_of(&wire.pod), &config).run());
    let config = underpass_tests::cni::config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    let no_pod = Call::new("ADD", &path_of(&wire.pod), &config).with("CNI_ARGS", None);
    output(&no_pod.run());
    assert!(nothing_of_ours(&wire));
}

#[test]
fn a_failed_add_leaves_no_rules() {
    let wire = Wire::new();
    for (name, retry, code) in [("refuses", false, 100), ("refuses-for-now", true, 11)] {
        let done = add(&wire, name, |plugin| {
            plugin.receive().unwrap();
            plugin.send(&FromAgent::Enrol { plan: Box::new(plan()) });
            plugin.receive().unwrap();
            plugin.send(&refusal(retry));
        });
        let (number, message) = error(&done);
        assert_eq!(number, code);
        assert!(message.contains("UP-CNI-010") && message.contains("UP-AGENT-999: the proxy refuses"), "{message}");
        assert!(text(&done.stdout).contains("look at the proxy"));
        assert!(nothing_of_ours(&wire));
    }
}

#[test]
fn an_agent_that_goes_away_leaves_no_rules() {
    let wire = Wire::new();
    let done = add(&wire, "goes", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol { plan: Box::new(plan()) });
        plugin.receive().unwrap();
    });
    assert!(error(&done).1.contains("UP-CNI-008"));
    assert!(nothing_of_ours(&wire));
}

#[test]
fn a_silent_agent_runs_into_the_deadline() {
    let wire = Wire::new();
    let done = add(&wire, "silent", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol { plan: Box::new(plan()) });
        plugin.receive().unwrap();
        assert!(plugin.receive().is_none(), "the plugin gives up");
    });
    let (number, message) = error(&done);
    assert!(number == 11 && message.contains("UP-CNI-008"), "{message}");
    assert!(nothing_of_ours(&wire));
}

#[test]
fn a_plugin_that_is_stopped_for_a_while_goes_on() {
    let wire = Wire::new();
    let done = add(&wire, "stopped", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol { plan: Box::new(plan()) });
        plugin.receive().unwrap();
        // As a freezer does, or who attaches a debugger, while it waits for the answer.
        for _ in 0..5 {
            for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                std::thread::sleep(Duration::from_millis(20));
                kill(plugin.pid(), signal).unwrap();
            }
        }
        plugin.send(&FromAgent::Ready);
    });
    output(&done);
    assert_eq!(diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()), []);
}

#[test]
fn an_agent_that_talks_nonsense_is_refused() {
    let wire = Wire::new();
    let garbage = add(&wire, "garbage", |plugin| {
        plugin.receive().unwrap();
        plugin.send_garbage();
    });
    let early = add(&wire, "early", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Ready);
    });
    for done in [garbage, early] {
        assert!(error(&done).1.contains("UP-CNI-009"));
    }
    assert!(nothing_of_ours(&wire));
}

#[test]
fn an_absent_agent_is_named() {
    let wire = Wire::new();
    let config = config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    let (number, message) = error(&Call::new("ADD", &path_of(&wire.pod), &config).run());
    assert!(number == 11 && message.contains("UP-CNI-007") && message.contains("/nonexistent/agent.sock"), "{message}");
}

#[test]
fn a_plugin_killed_half_way_is_undone_by_del() {
    let wire = Wire::new();
    for netns in [path_of(&wire.pod), String::new()] {
        let agent = FakeAgent::new("killed");
        let mut call = Call::new("ADD", &path_of(&wire.pod), &config(&agent.socket, &ADDRESSES)).start();
        let plugin = agent.accept();
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol { plan: Box::new(plan()) });
        plugin.receive().unwrap();
        call.kill().unwrap();
        call.wait().unwrap();
        assert!(plugin.receive().is_none());
        assert!(!nothing_of_ours(&wire));
        let del = Call::new("DEL", &netns, &config(&agent.socket, &[])).start();
        let plugin = agent.accept();
        assert!(matches!(plugin.receive().unwrap().0, FromPlugin::Del { .. }));
        plugin.send(&FromAgent::Gone);
        assert_eq!(output(&del.wait_with_output().unwrap()), "");
        // Without a namespace the agent, which holds it, does this.
        if netns.is_empty() {
            wire.pod.run(redirect::remove).unwrap().unwrap();
        }
        assert!(nothing_of_ours(&wire));
    }
}

#[test]
fn del_never_fails() {
    let nowhere = config(std::path::Path::new("/nonexistent/agent.sock"), &[]);
    let call = Call::new("DEL", "/nonexistent/netns", &nowhere);
    let mut calls =
        vec![call.clone(), call.clone().with("CNI_NETNS", None), call.clone().with("CNI_NETNS", Some("/etc/hostname"))];
    calls.push(call.clone().with("CNI_CONTAINERID", None).with("CNI_ARGS", None));
    for stdin in ["", "{", "null", r#"{"prevResult":null}"#, r#"{"prevResult":[1],"cniVersion":"9"}"#] {
        calls.push(Call { stdin: stdin.into(), ..call.clone() });
    }
    for call in calls {
        assert_eq!(output(&call.run()), "", "{call:?}");
    }
}

#[test]
fn bad_input_is_explained() {
    let wire = Wire::new();
    let good = config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    let call = Call::new("ADD", &path_of(&wire.pod), &good);
    let changed = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        Call::new("ADD", &path_of(&wire.pod), &config)
    };
    let own = "/proc/self/ns/net";
    let cases = [
        (Call { stdin: b"not json".to_vec(), ..call.clone() }, 6, "UP-CNI-002"),
        (Call { stdin: Vec::new(), ..call.clone() }, 6, "UP-CNI-002"),
        (changed("prevResult", Value::Null), 7, "UP-CNI-005"),
        (changed("prevResult", json!([1])), 6, "UP-CNI-005"),
        (changed("prevResult", json!({ "ips": [{ "address": "x" }] })), 6, "UP-CNI-005"),
        (changed("cniVersion", json!("1.2.0")), 1, "UP-CNI-003"),
        (changed("cniVersion", json!("0.3.0")), 1, "UP-CNI-003"),
        (changed("name", json!("a/b")), 7, "UP-CNI-004"),
        (changed("agentSocket", json!(7)), 6, "UP-CNI-002"),
        (call.clone().with("CNI_COMMAND", Some("FOO")), 4, "FOO"),
        (call.clone().with("CNI_CONTAINERID", None).with("CNI_PATH", None), 4, "CNI_CONTAINERID, CNI_PATH"),
        (call.clone().with("CNI_CONTAINERID", Some("../x")), 4, "CNI_CONTAINERID"),
        (call.clone().with("CNI_IFNAME", Some("a/b")), 4, "CNI_IFNAME"),
        (call.clone().with("CNI_NETNS", Some("/etc/hostname")), 8, "is not a namespace"),
        (call.clone().with("CNI_NETNS", Some("/proc/self/ns/mnt")), 8, "not a network namespace"),
        (call.clone().with("CNI_NETNS", Some("/nonexistent")), 8, "cannot open"),
        (call.clone().with("CNI_NETNS", Some(own)), 8, "own network namespace"),
    ];
    for (call, number, says) in cases {
        let (code, message) = error(&call.run());
        assert!(code == number && message.contains(says), "{code} {message}; expected {number} {says}");
    }
    assert!(nothing_of_ours(&wire));
}

#[test]
fn versions_are_told() {
    let call = Call::new("VERSION", "dummy", &json!({ "cniVersion": "1.1.0" }));
    let answer: Value = serde_json::from_str(&output(&call.run())).unwrap();
    assert_eq!(answer, json!({ "cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] }));
    output(&Call { stdin: Vec::new(), ..call.clone() }.run());
    let about = Call { env: Vec::new(), stdin: Vec::new() }.run();
    assert_eq!(output(&about), "");
    assert!(text(&about.stderr).contains("chained CNI plugin"));
}
