//! Plugin, agent and proxy are killed at each step of an ADD, and calls are repeated, late or
//! incomplete: nothing is left behind, and the next ADD succeeds.
#![allow(clippy::unwrap_used)]

use std::process::Output;

use handoff::{FromAgent, FromPlugin};
use serde_json::{Value, json};
use underpass_tests::cni::{Call, FakeAgent, config, path_of};
use underpass_tests::fakes::{FakePlugin, FakeProxy, PluginRelay, add_message, await_exit};
use underpass_tests::node::{MESH, TestNode, no_more_open, open_files, stable_open_files};
use underpass_tests::sandbox::until;
use underpass_tests::wire::Wire;
use zds::message::Payload;

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn call_on(verb: &str, socket: &std::path::Path, wire: &Wire) -> Call {
    let config = config(socket, &ADDRESSES);
    Call::new(verb, &path_of(&wire.pod), &config)
}

fn call(verb: &str, node: &TestNode, wire: &Wire) -> Call {
    call_on(verb, &node.agent_socket(), wire)
}

/// The message of a call that failed with "try again later", and that names a next step.
#[track_caller]
fn temporary_failure(output: &Output) -> String {
    assert!(!output.status.success(), "the ADD succeeded");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        error["code"] == 11 && error["details"].as_str().unwrap().contains("Next step: "),
        "{error}"
    );
    error["msg"].as_str().unwrap().to_owned()
}

#[track_caller]
fn assert_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn has_no_rules(wire: &Wire) -> bool {
    wire.pod
        .run(redirect::read_back)
        .unwrap()
        .unwrap()
        .is_empty()
}

fn listeners(wire: &Wire) -> usize {
    underpass_tests::listener::listening_ports(&wire.pod).len()
}

/// Asserts that the pod has no rules or listeners, and that the agent does not list it.
#[track_caller]
fn assert_nothing_is_left(node: &TestNode, wire: &Wire) {
    until("the rules are removed", || has_no_rules(wire).then_some(()));
    until("the agent does not list the pod", || {
        node.pods().is_empty().then_some(())
    });
    until("the pod has no listeners", || {
        (listeners(wire) == 0).then_some(())
    });
}

/// Asserts that the next agent finds nothing of the failed ADD, and that the next ADD succeeds.
fn assert_next_agent_enrols(node: &mut TestNode, wire: &Wire) {
    node.kill_all();
    assert!(has_no_rules(wire), "the failed ADD left rules");
    node.start_agent();
    let proxy = node.start_ready_proxy();
    assert_nothing_is_left(node, wire);
    assert_success(&call("ADD", node, wire).run());
    assert_eq!(listeners(wire), 4);
    assert_success(&call("DEL", node, wire).run());
    assert_nothing_is_left(node, wire);
    node.kill(proxy);
}

#[test]
fn agent_killed_at_any_step_of_an_add_leaves_nothing_and_the_next_one_enrols_the_pod() {
    let (mut node, wire) = (TestNode::new("agent-killed", MESH), Wire::new());

    // Before it reads Add from its socket.
    let agent = node.start_agent();
    node.freeze(agent, true);
    let plugin = call("ADD", &node, &wire).start();
    until("the plugin waits for the plan", || {
        sleeps_in(plugin.id(), "unix_stream_read_generic|recvmsg|skb_wait").then_some(())
    });
    node.kill(agent);
    assert!(temporary_failure(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    assert_next_agent_enrols(&mut node, &wire);

    // After it has sent the plan, and the plugin has installed it.
    node.kill_all();
    let agent = node.start_agent();
    let fake_agent = FakeAgent::new("agent-killed-relay");
    let plugin = call_on("ADD", &fake_agent.socket, &wire).start();
    let relay = PluginRelay::between(&fake_agent, &node);
    relay.to_agent(&relay.from_plugin());
    relay.forward_reply();
    relay.from_plugin();
    assert!(!has_no_rules(&wire), "the plan is installed");
    node.kill(agent);
    drop(relay);
    assert!(temporary_failure(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    assert_next_agent_enrols(&mut node, &wire);

    // While it waits for a proxy to connect.
    node.kill_all();
    let agent = node.start_agent();
    let plugin = call("ADD", &node, &wire).start();
    until("the agent waits for a proxy", || {
        (node.pods().len() == 1).then_some(())
    });
    node.kill(agent);
    assert!(temporary_failure(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    assert_next_agent_enrols(&mut node, &wire);

    // After it has asked a proxy.
    node.kill_all();
    let agent = node.start_agent();
    let proxy = FakeProxy::synced(&node);
    let plugin = call("ADD", &node, &wire).start();
    assert!(matches!(proxy.next(), (Payload::Add(_), 1)));
    until("the record is on disk, with its mark", || {
        is_marked(&node).then_some(())
    });
    node.kill(agent);
    assert!(temporary_failure(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    assert!(is_marked(&node));
    assert_next_agent_enrols(&mut node, &wire);
}

/// Whether the agent's state has a pod whose ADD had not been answered when it was written.
fn is_marked(node: &TestNode) -> bool {
    let state = std::fs::read_to_string(node.file("state/pods.json")).unwrap_or_default();
    state.contains("\"unanswered\": true")
}

/// The agent is killed after it has answered the ADD, and before it has written so.
#[test]
fn a_pod_whose_add_was_answered_stays_a_member_whatever_its_record_says() {
    let (mut node, wire) = (TestNode::new("answered", MESH), Wire::new());
    let agent = node.start_agent();
    node.start_ready_proxy();
    assert_success(&call("ADD", &node, &wire).run());
    let file = node.file("state/pods.json");
    until("the mark is removed", || {
        let state = std::fs::read_to_string(&file).unwrap();
        (state.contains("uid-1") && !state.contains("unanswered")).then_some(())
    });
    node.kill(agent);
    let mut state: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    state["pods"][0]["unanswered"] = json!(true);
    std::fs::write(&file, serde_json::to_vec_pretty(&state).unwrap()).unwrap();
    assert!(is_marked(&node));
    let agent = node.start_agent();
    until("the pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    until("the mark is removed", || (!is_marked(&node)).then_some(()));
    node.kill(agent);
    // Without the mark, missing rules are repaired.
    wire.pod.run(redirect::remove).unwrap().unwrap();
    node.start_agent();
    until("the pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    assert!(!has_no_rules(&wire));
}

/// Whether a process sleeps in one of these kernel functions.
fn sleeps_in(pid: u32, functions: &str) -> bool {
    let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|s| s.split_whitespace().next().map(str::to_owned));
    state.as_deref() == Some("S")
        && (wchan == "0" || functions.split('|').any(|f| wchan.contains(f)))
}

#[test]
fn proxy_killed_at_any_step_of_an_add_is_replaced_by_the_next_one() {
    let (mut node, wire) = (TestNode::new("proxy-killed", MESH), Wire::new());
    node.start_agent();

    // Before the agent asks the proxy.
    let first = node.start_ready_proxy();
    node.kill(first);
    let plugin = call("ADD", &node, &wire).start();
    until("the agent waits for a proxy", || {
        (node.pods().len() == 1).then_some(())
    });
    let second = node.start_proxy();
    assert_success(&plugin.wait_with_output().unwrap());
    assert_success(&call("DEL", &node, &wire).run());

    // Before it reads Add from its socket.
    until("the proxy has acknowledged the snapshot", || {
        (node.get("127.0.0.1:15014", "/readyz").ok()?.0 == 200).then_some(())
    });
    node.freeze(second, true);
    let plugin = call("ADD", &node, &wire).start();
    until("the agent waits for the proxy", || {
        (node.pods().len() == 1).then_some(())
    });
    node.kill(second);
    let third = node.start_proxy();
    assert_success(&plugin.wait_with_output().unwrap());
    assert_eq!(listeners(&wire), 4);
    assert_success(&call("DEL", &node, &wire).run());
    assert_nothing_is_left(&node, &wire);

    // Without a successor.
    node.freeze(third, true);
    let plugin = call("ADD", &node, &wire).with_deadline(1500).start();
    until("the agent waits for the proxy", || {
        (node.pods().len() == 1).then_some(())
    });
    node.kill(third);
    let error = temporary_failure(&plugin.wait_with_output().unwrap());
    assert!(node.failed_by(&error, "UP-AGENT-006"), "{error}");
    assert_nothing_is_left(&node, &wire);
    node.start_ready_proxy();
    assert_success(&call("ADD", &node, &wire).run());
}

#[test]
fn plugin_killed_at_any_step_leaves_nothing_with_or_without_del() {
    let (mut node, wire) = (TestNode::new("plugin-killed", MESH), Wire::new());
    let agent = node.start_agent();
    let before = stable_open_files(agent);
    let after = |node: &TestNode, wire: &Wire| {
        assert_nothing_is_left(node, wire); // without a DEL
        until("the agent has closed the files of the pod", || {
            (no_more_open(open_files(agent), before)).then_some(())
        });
        assert_success(&call("DEL", node, wire).run());
        assert_nothing_is_left(node, wire);
    };

    // Before it connects.
    let mut plugin = call("ADD", &node, &wire).start_without_input();
    plugin.kill().unwrap();
    await_exit(&mut plugin);
    after(&node, &wire);

    // After it has sent Add.
    node.freeze(agent, true);
    let mut plugin = call("ADD", &node, &wire).start();
    until("the plugin waits for the plan", || {
        sleeps_in(plugin.id(), "unix_stream_read_generic|recvmsg|skb_wait").then_some(())
    });
    plugin.kill().unwrap();
    await_exit(&mut plugin);
    node.freeze(agent, false);
    after(&node, &wire);

    // After it has installed the plan, before the agent is notified.
    let fake_agent = FakeAgent::new("plugin-killed-relay");
    let mut plugin = call_on("ADD", &fake_agent.socket, &wire).start();
    let relay = PluginRelay::between(&fake_agent, &node);
    relay.to_agent(&relay.from_plugin());
    relay.forward_reply();
    relay.from_plugin();
    assert!(!has_no_rules(&wire));
    plugin.kill().unwrap();
    await_exit(&mut plugin);
    drop(relay);
    after(&node, &wire);

    // While it waits for a proxy.
    let mut plugin = call("ADD", &node, &wire).start();
    until("the agent waits for a proxy", || {
        (node.pods().len() == 1).then_some(())
    });
    plugin.kill().unwrap();
    await_exit(&mut plugin);
    after(&node, &wire);
    node.start_ready_proxy();
    assert_success(&call("ADD", &node, &wire).run());
}

#[test]
fn concurrent_add_of_a_pod_is_deferred_and_leaves_the_first_intact() {
    let (mut node, wire) = (TestNode::new("add-twice", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::synced(&node);
    let plugin = call("ADD", &node, &wire).start();
    let (Payload::Add(request), 1) = proxy.next() else {
        panic!("no Add with a descriptor")
    };
    assert_eq!(request.uid, "uid-1");
    let second = call("ADD", &node, &wire).run();
    assert!(temporary_failure(&second).contains("UP-AGENT-020"));
    let other_container = call("ADD", &node, &wire)
        .with("CNI_CONTAINERID", Some("another"))
        .run();
    assert!(temporary_failure(&other_container).contains("UP-AGENT-020"));
    assert!(
        !has_no_rules(&wire),
        "the rules of the first ADD are unchanged"
    );
    proxy.answer(Ok(()));
    assert_success(&plugin.wait_with_output().unwrap());
    assert_eq!(node.pods().len(), 1);
    assert!(!has_no_rules(&wire));
}

#[test]
fn attachment_reused_by_another_pod_replaces_the_first() {
    let (mut node, wire) = (TestNode::new("other-uid", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::synced(&node);
    for (uid, expected) in [("uid-1", None), ("uid-2", Some("uid-1"))] {
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=client;K8S_POD_UID={uid}");
        let plugin = call("ADD", &node, &wire)
            .with("CNI_ARGS", Some(&args))
            .start();
        if let Some(replaced) = expected {
            let (Payload::Del(request), 0) = proxy.next() else {
                panic!("the proxy keeps {replaced}")
            };
            assert_eq!(request.uid, replaced);
            proxy.answer(Ok(()));
        }
        let (Payload::Add(request), 1) = proxy.next() else {
            panic!("no Add with a descriptor")
        };
        assert_eq!(request.uid, uid);
        proxy.answer(Ok(()));
        assert_success(&plugin.wait_with_output().unwrap());
        assert_eq!(node.pods().len(), 1);
    }
}

#[test]
fn del_in_every_form_removes_an_enrolled_pod() {
    let (mut node, wire) = (TestNode::new("del-forms", MESH), Wire::new());
    let agent = node.start_agent();
    node.start_ready_proxy();
    let del = call("DEL", &node, &wire);
    assert_success(&del.run()); // before any ADD
    assert_success(&call("ADD", &node, &wire).run());
    assert_success(&del.run());
    assert_nothing_is_left(&node, &wire);
    let before = stable_open_files(agent);
    let mut bare: Value = serde_json::from_slice(&del.stdin).unwrap();
    bare.as_object_mut().unwrap().remove("prevResult");
    let forms = [
        ("with prevResult", del.clone()),
        (
            "without prevResult",
            Call {
                stdin: bare.to_string().into_bytes(),
                ..del.clone()
            },
        ),
        (
            "an empty CNI_NETNS",
            del.clone().with("CNI_NETNS", Some("")),
        ),
        ("no CNI_NETNS", del.clone().with("CNI_NETNS", None)),
        (
            "a namespace that does not exist",
            del.clone()
                .with("CNI_NETNS", Some("/var/run/netns/missing")),
        ),
        ("no CNI_ARGS", del.clone().with("CNI_ARGS", None)),
        ("a configuration that ADD would reject", {
            let mut config = bare.clone();
            config["cniVersion"] = json!("9.9.9");
            config["name"] = json!("");
            Call {
                stdin: config.to_string().into_bytes(),
                ..del.clone()
            }
        }),
    ];
    for (form, del) in forms {
        assert_success(&call("ADD", &node, &wire).run());
        assert_eq!(listeners(&wire), 4, "{form}");
        let output = del.run();
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{form}"
        );
        assert_nothing_is_left(&node, &wire);
        until("the agent has closed all files of the pod", || {
            (no_more_open(open_files(agent), before)).then_some(())
        });
    }
    // The plugin cannot reach the agent: it still removes the rules, and a repeated DEL reaches the
    // agent.
    for stdin in [
        b"{ garbage".to_vec(),
        br#"{"agentSocket":"/nonexistent/agent.sock"}"#.to_vec(),
    ] {
        assert_success(&call("ADD", &node, &wire).run());
        let output = Call {
            stdin,
            ..del.clone()
        }
        .run();
        assert!(output.status.success() && output.stdout.is_empty());
        assert_success(&del.run());
        assert_nothing_is_left(&node, &wire);
    }
}

#[test]
fn netns_path_that_blocks_on_open_delays_no_call() {
    let (mut node, wire) = (TestNode::new("fifo", MESH), Wire::new());
    node.start_agent();
    let fifo = node.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for verb in ["ADD", "DEL", "CHECK"] {
        let mut plugin = call(verb, &node, &wire)
            .with("CNI_NETNS", fifo.to_str())
            .start();
        assert_eq!(await_exit(&mut plugin).success(), verb == "DEL", "{verb}");
    }
}

#[test]
fn plugin_that_stalls_after_installing_is_undone_at_its_deadline() {
    let (mut node, wire) = (TestNode::new("stops", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // Sends nothing after the plan, and stays connected.
    let plugin = FakePlugin::connect(&node);
    let mut add = add_message("stops");
    if let FromPlugin::Add { deadline_ms, .. } = &mut add {
        *deadline_ms = 600;
    }
    plugin.send(&add, Some(std::os::fd::AsFd::as_fd(&wire.pod)));
    let Some(FromAgent::Enrol { plan }) = plugin.answer() else {
        panic!("no plan")
    };
    wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
    assert_eq!(plugin.rejection(), "UP-AGENT-001");
    assert_nothing_is_left(&node, &wire);
    // Sends an unexpected message instead.
    let plugin = FakePlugin::connect(&node);
    plugin.send(
        &add_message("stops"),
        Some(std::os::fd::AsFd::as_fd(&wire.pod)),
    );
    let Some(FromAgent::Enrol { plan }) = plugin.answer() else {
        panic!("no plan")
    };
    wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
    plugin.send(&add_message("stops"), None);
    assert_eq!(plugin.rejection(), "UP-AGENT-001");
    assert_nothing_is_left(&node, &wire);
    // Reports an installation that it has not done.
    let plugin = FakePlugin::connect(&node);
    plugin.send(
        &add_message("stops"),
        Some(std::os::fd::AsFd::as_fd(&wire.pod)),
    );
    assert!(matches!(plugin.answer(), Some(FromAgent::Enrol { .. })));
    plugin.send(&FromPlugin::Installed, None);
    assert_eq!(plugin.rejection(), "UP-AGENT-005");
    // A correct plugin enrols the pod.
    let plugin = FakePlugin::connect(&node);
    plugin.install(&wire.pod);
    assert_eq!(plugin.answer(), Some(FromAgent::Ready));
}
