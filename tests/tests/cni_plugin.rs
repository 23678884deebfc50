//! The CNI plugin, run as by a container runtime, against a fake agent.

#![allow(clippy::unwrap_used)] // a failure fails the test

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

/// The standard output of a successful call.
fn output(done: &Output) -> String {
    assert!(
        done.status.success(),
        "{} {}",
        text(&done.stdout),
        text(&done.stderr)
    );
    text(&done.stdout)
}

/// The number and the message of a failed call, whose output must be one JSON object with details.
fn error(done: &Output) -> (u64, String) {
    assert!(!done.status.success());
    let error: Value =
        serde_json::from_slice(&done.stdout).expect("standard output is one JSON value");
    assert!(
        error["details"].as_str().unwrap().contains("Next step: "),
        "{error}"
    );
    assert!(error["cniVersion"].is_string(), "{error}");
    (
        error["code"].as_u64().unwrap(),
        error["msg"].as_str().unwrap().to_owned(),
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn has_no_rules(wire: &Wire) -> bool {
    wire.pod.run(read_back).unwrap().unwrap().is_empty()
}

fn refusal(retry: bool) -> FromAgent {
    let (code, why) = ("UP-AGENT-999".to_owned(), "the proxy refuses".to_owned());
    FromAgent::Failed {
        code,
        why,
        next_step: "look at the proxy".to_owned(),
        retry,
    }
}

/// Runs an ADD against a fake agent; returns the plugin's output.
fn add(wire: &Wire, name: &str, serve: impl FnOnce(Plugin)) -> Output {
    add_as(wire, name, |call| call, serve)
}

/// Like [`add`], with a changed call.
fn add_as(
    wire: &Wire,
    name: &str,
    change: impl FnOnce(Call) -> Call,
    serve: impl FnOnce(Plugin),
) -> Output {
    let agent = FakeAgent::new(name);
    let config = config(&agent.socket, &ADDRESSES);
    let call = change(Call::new("ADD", &path_of(&wire.pod), &config)).start();
    serve(agent.accept());
    call.wait_with_output().unwrap()
}

#[test]
fn add_enrols_the_pod_and_returns_the_previous_result() {
    let wire = Wire::new();
    let done = add(&wire, "enrols", |plugin| {
        let (message, netns) = plugin.receive().unwrap();
        let FromPlugin::Add { pod, addresses, .. } = message else {
            panic!("{message:?}")
        };
        assert_eq!(
            (
                pod.namespace.as_str(),
                pod.name.as_str(),
                pod.uid.as_deref()
            ),
            ("default", "client", Some("uid-1"))
        );
        assert_eq!(addresses, [POD4, POD6]);
        assert_eq!(netns.unwrap().id(), wire.pod.id());
        plugin.send(&FromAgent::Enrol {
            plan: Box::new(plan()),
        });
        assert_eq!(plugin.receive().unwrap().0, FromPlugin::Installed);
        assert_eq!(
            diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()),
            []
        );
        plugin.send(&FromAgent::Ready);
    });
    let expected = config(std::path::Path::new("/"), &ADDRESSES)["prevResult"].to_string();
    assert_eq!(
        output(&done).trim_end(),
        expected,
        "prevResult, byte for byte"
    );
    assert_eq!(
        diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()),
        []
    );
}

/// A previous result as plugins of this version print it.
fn result_of(version: &str) -> Value {
    let new = |family: fn(&mut Value, &str)| {
        let mut ips = ADDRESSES.map(|a| json!({ "address": a }));
        family(&mut ips[0], "4");
        family(&mut ips[1], "6");
        json!({ "ips": ips, "dns": {} })
    };
    match version {
        "" | "0.1.0" | "0.2.0" => {
            json!({ "ip4": { "ip": ADDRESSES[0] }, "ip6": { "ip": ADDRESSES[1] }, "dns": {} })
        }
        "0.3.0" | "0.3.1" | "0.4.0" => new(|ip, family| ip["version"] = json!(family)),
        _ => new(|_, _| {}),
    }
}

#[test]
fn every_version_is_enrolled_and_its_result_returned() {
    let wire = Wire::new();
    let versions = [
        "", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ];
    for version in versions {
        let mut result = result_of(version);
        let result_version = if version.is_empty() { "0.1.0" } else { version };
        result["cniVersion"] = json!(result_version);
        let agent = FakeAgent::new("versions");
        let mut config = config(&agent.socket, &ADDRESSES);
        config["cniVersion"] = json!(version);
        config["prevResult"] = result.clone();
        let call = Call::new("ADD", &path_of(&wire.pod), &config).start();
        let plugin = agent.accept();
        let (message, _) = plugin.receive().unwrap();
        let FromPlugin::Add { addresses, .. } = message else {
            panic!("{message:?}")
        };
        assert_eq!(addresses, [POD4, POD6], "{version}");
        plugin.send(&FromAgent::Skip {
            reason: "enough".into(),
        });
        let done = call.wait_with_output().unwrap();
        assert_eq!(output(&done).trim_end(), result.to_string(), "{version}");
    }
}

/// libcni passes `"cniVersion": ""` for a list without a version, and plugins of old versions may
/// print no version.
#[test]
fn result_without_a_version_gets_that_of_the_list() {
    let wire = Wire::new();
    for (list, expected) in [
        (Value::Null, "0.1.0"),
        (json!(""), "0.1.0"),
        (json!("0.3.0"), "0.3.0"),
    ] {
        let mut config = config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
        config["cniVersion"] = list;
        config["prevResult"] = result_of(expected);
        let no_pod = Call::new("ADD", &path_of(&wire.pod), &config).with("CNI_ARGS", None);
        let result: Value = serde_json::from_str(&output(&no_pod.run())).unwrap();
        assert_eq!(result["cniVersion"], expected);
    }
}

#[test]
fn an_excluded_namespace_starts_whatever_else_is_wrong() {
    let wire = Wire::new();
    let unusable = json!({
        "cniVersion": "9.9.9",
        "name": "a/b",
        "agentSocket": 7,
        "excludeNamespaces": ["default"],
        "prevResult": { "cniVersion": "9.9.9", "ips": [{ "address": "x" }] },
    });
    let result = unusable["prevResult"].to_string();
    let call = Call::new("ADD", "/nonexistent", &unusable).with("CNI_IFNAME", None);
    assert_eq!(output(&call.run()).trim_end(), result);
    let check = Call::new("CHECK", "/nonexistent", &unusable);
    assert_eq!(output(&check.run()), "");
    let other = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a";
    let other = Call::new("ADD", &path_of(&wire.pod), &unusable).with("CNI_ARGS", Some(other));
    assert!(error(&other.run()).1.contains("UP-CNI-"));
}

#[test]
fn add_of_a_skipped_pod_changes_nothing() {
    let wire = Wire::new();
    let done = add(&wire, "skips", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Skip {
            reason: "opted out".into(),
        });
    });
    output(&done);
    assert!(text(&done.stderr).contains("opted out"));
    assert!(has_no_rules(&wire));
}

#[test]
fn what_the_agent_reports_of_a_pod_cannot_control_a_terminal_or_add_lines() {
    const REASON: &str = "a\u{1b}[2Jb\nUP-CNI-001: c\u{202e}";
    const PRINTED: &str = "a\\u001b[2Jb\\nUP-CNI-001: c\\u202e";
    let wire = Wire::new();
    let skipped = add(&wire, "skips-escaped", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Skip {
            reason: REASON.into(),
        });
    });
    output(&skipped);
    let printed = text(&skipped.stderr);
    assert_eq!(printed, format!("pod not enrolled: {PRINTED}\n"));
    let refused = add(&wire, "fails-escaped", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Failed {
            code: "UP-AGENT-999".into(),
            why: REASON.into(),
            next_step: String::new(),
            retry: false,
        });
    });
    let message = error(&refused).1;
    assert!(message.contains(PRINTED), "{message}");
}

#[test]
fn an_excluded_namespace_needs_no_agent() {
    let wire = Wire::new();
    let mut config = config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    config["excludeNamespaces"] = json!(["default"]);
    output(&Call::new("ADD", &path_of(&wire.pod), &config).run());
    let config =
        underpass_tests::cni::config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    let no_pod = Call::new("ADD", &path_of(&wire.pod), &config).with("CNI_ARGS", None);
    output(&no_pod.run());
    assert!(has_no_rules(&wire));
}

#[test]
fn a_failed_add_leaves_no_rules() {
    let wire = Wire::new();
    for (name, retry, code) in [("refuses", false, 100), ("refuses-for-now", true, 11)] {
        let done = add(&wire, name, |plugin| {
            plugin.receive().unwrap();
            plugin.send(&FromAgent::Enrol {
                plan: Box::new(plan()),
            });
            plugin.receive().unwrap();
            plugin.send(&refusal(retry));
        });
        let (number, message) = error(&done);
        assert_eq!(number, code);
        assert!(
            message.contains("UP-CNI-010") && message.contains("UP-AGENT-999: the proxy refuses"),
            "{message}"
        );
        assert!(text(&done.stdout).contains("look at the proxy"));
        assert!(has_no_rules(&wire));
    }
}

#[test]
fn add_leaves_no_rules_if_the_agent_disconnects() {
    let wire = Wire::new();
    let done = add(&wire, "goes", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol {
            plan: Box::new(plan()),
        });
        plugin.receive().unwrap();
    });
    assert!(error(&done).1.contains("UP-CNI-008"));
    assert!(has_no_rules(&wire));
}

#[test]
fn unresponsive_agent_fails_the_add_at_the_deadline() {
    let wire = Wire::new();
    let brief = |call: Call| call.with_deadline(1500);
    let done = add_as(&wire, "silent", brief, |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol {
            plan: Box::new(plan()),
        });
        plugin.receive().unwrap();
        assert!(
            plugin.receive().is_none(),
            "the plugin closes the connection"
        );
    });
    let (number, message) = error(&done);
    assert!(number == 11 && message.contains("UP-CNI-008"), "{message}");
    assert!(has_no_rules(&wire));
}

#[test]
fn stopped_plugin_continues_after_sigcont() {
    let wire = Wire::new();
    let done = add(&wire, "stopped", |plugin| {
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol {
            plan: Box::new(plan()),
        });
        plugin.receive().unwrap();
        // Like a cgroup freezer or a debugger, while the plugin waits for the reply.
        for _ in 0..5 {
            for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                std::thread::sleep(Duration::from_millis(20));
                kill(plugin.pid(), signal).unwrap();
            }
        }
        plugin.send(&FromAgent::Ready);
    });
    output(&done);
    assert_eq!(
        diff(&plan(), &wire.pod.run(read_back).unwrap().unwrap()),
        []
    );
}

#[test]
fn unexpected_agent_replies_are_rejected() {
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
    assert!(has_no_rules(&wire));
}

#[test]
fn unreachable_agent_error_names_the_pod_and_the_socket() {
    let wire = Wire::new();
    let config = config(std::path::Path::new("/nonexistent/agent.sock"), &ADDRESSES);
    let (number, message) = error(&Call::new("ADD", &path_of(&wire.pod), &config).run());
    assert!(
        number == 11
            && message.contains("UP-CNI-007")
            && message.contains("pod default/client waits")
            && message.contains("/nonexistent/agent.sock"),
        "{message}"
    );
}

#[test]
fn del_undoes_the_add_of_a_killed_plugin() {
    let wire = Wire::new();
    for netns in [path_of(&wire.pod), String::new()] {
        let agent = FakeAgent::new("killed");
        let mut call = Call::new(
            "ADD",
            &path_of(&wire.pod),
            &config(&agent.socket, &ADDRESSES),
        )
        .start();
        let plugin = agent.accept();
        plugin.receive().unwrap();
        plugin.send(&FromAgent::Enrol {
            plan: Box::new(plan()),
        });
        plugin.receive().unwrap();
        call.kill().unwrap();
        call.wait().unwrap();
        assert!(plugin.receive().is_none());
        assert!(!has_no_rules(&wire));
        let del = Call::new("DEL", &netns, &config(&agent.socket, &[])).start();
        let plugin = agent.accept();
        assert!(matches!(
            plugin.receive().unwrap().0,
            FromPlugin::Del { .. }
        ));
        plugin.send(&FromAgent::Gone);
        assert_eq!(output(&del.wait_with_output().unwrap()), "");
        // Without a namespace, the agent removes the rules; it holds the namespace.
        if netns.is_empty() {
            wire.pod.run(redirect::remove).unwrap().unwrap();
        }
        assert!(has_no_rules(&wire));
    }
}

#[test]
fn del_never_fails() {
    let nowhere = config(std::path::Path::new("/nonexistent/agent.sock"), &[]);
    let call = Call::new("DEL", "/nonexistent/netns", &nowhere);
    let mut calls = vec![
        call.clone(),
        call.clone().with("CNI_NETNS", None),
        call.clone().with("CNI_NETNS", Some("/etc/hostname")),
    ];
    calls.push(
        call.clone()
            .with("CNI_CONTAINERID", None)
            .with("CNI_ARGS", None),
    );
    for stdin in [
        "",
        "{",
        "null",
        r#"{"prevResult":null}"#,
        r#"{"prevResult":[1],"cniVersion":"9"}"#,
    ] {
        calls.push(Call {
            stdin: stdin.into(),
            ..call.clone()
        });
    }
    for call in calls {
        assert_eq!(output(&call.run()), "", "{call:?}");
    }
}

#[test]
fn invalid_input_is_rejected_with_a_code() {
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
        (
            Call {
                stdin: b"not json".to_vec(),
                ..call.clone()
            },
            6,
            "UP-CNI-002",
        ),
        (
            Call {
                stdin: Vec::new(),
                ..call.clone()
            },
            6,
            "UP-CNI-002",
        ),
        (changed("prevResult", Value::Null), 7, "UP-CNI-005"),
        (changed("prevResult", json!([1])), 6, "UP-CNI-005"),
        (
            changed("prevResult", json!({ "ips": [{ "address": "x" }] })),
            6,
            "UP-CNI-005",
        ),
        (changed("cniVersion", json!("1.2.0")), 1, "UP-CNI-003"),
        (changed("cniVersion", json!("0.3.2")), 1, "UP-CNI-003"),
        (changed("name", json!("a/b")), 7, "UP-CNI-004"),
        (changed("agentSocket", json!(7)), 6, "UP-CNI-002"),
        (call.clone().with("CNI_COMMAND", Some("FOO")), 4, "FOO"),
        (
            call.clone()
                .with("CNI_CONTAINERID", None)
                .with("CNI_PATH", None),
            4,
            "CNI_CONTAINERID, CNI_PATH",
        ),
        (
            call.clone().with("CNI_CONTAINERID", Some("../x")),
            4,
            "CNI_CONTAINERID",
        ),
        (
            call.clone().with("CNI_IFNAME", Some("a/b")),
            4,
            "CNI_IFNAME",
        ),
        (
            call.clone().with("CNI_NETNS", Some("/etc/hostname")),
            8,
            "UP-CNI-006",
        ),
        (
            call.clone().with("CNI_NETNS", Some("/proc/self/ns/mnt")),
            8,
            "UP-CNI-006",
        ),
        (
            call.clone().with("CNI_NETNS", Some("/nonexistent")),
            8,
            "UP-CNI-006",
        ),
        (call.clone().with("CNI_NETNS", Some(own)), 8, "UP-CNI-006"),
    ];
    for (call, number, text) in cases {
        let (code, message) = error(&call.run());
        assert!(
            code == number && message.contains(text),
            "{code} {message}; expected {number} {text}"
        );
    }
    assert!(has_no_rules(&wire));
}

#[test]
fn version_lists_the_supported_versions() {
    let call = Call::new("VERSION", "dummy", &json!({ "cniVersion": "1.1.0" }));
    let answer: Value = serde_json::from_str(&output(&call.run())).unwrap();
    let all = [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ];
    assert_eq!(
        answer,
        json!({ "cniVersion": "1.1.0", "supportedVersions": all })
    );
    output(
        &Call {
            stdin: Vec::new(),
            ..call.clone()
        }
        .run(),
    );
    let about = Call {
        env: Vec::new(),
        stdin: Vec::new(),
    }
    .run();
    assert_eq!(output(&about), "");
    assert!(text(&about.stderr).contains("underpass-cni"));
}
