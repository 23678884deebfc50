//! Plugin, agent and proxy are killed at each step of an ADD, and calls come twice, late, or without what they need:
//! nothing is left behind, and the next ADD works.
#![allow(clippy::unwrap_used)]

use std::process::Output;

use handoff::{FromAgent, FromPlugin};
use serde_json::{Value, json};
use underpass_tests::cni::{Call, FakeAgent, config, path_of};
use underpass_tests::node::{MESH, Node, no_more_open, open_files, settled};
use underpass_tests::players::{FakeProxy, PlayedPlugin, Relay, ended, hello};
use underpass_tests::sandbox::until;
use underpass_tests::wire::Wire;
use zds::message::Payload;

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];

fn call_on(verb: &str, socket: &std::path::Path, wire: &Wire) -> Call {
    let mut config = config(socket, &ADDRESSES);
    config["deadlineMs"] = json!(5000);
    Call::new(verb, &path_of(&wire.pod), &config)
}

fn call(verb: &str, node: &Node, wire: &Wire) -> Call {
    call_on(verb, &node.agent_socket(), wire)
}

/// The message of a call that failed with "try again later", which has a next step.
#[track_caller]
fn failed_for_now(output: &Output) -> String {
    assert!(!output.status.success(), "the ADD succeeded");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error["code"] == 11 && error["details"].as_str().unwrap().contains("Next step: "), "{error}");
    error["msg"].as_str().unwrap().to_owned()
}

#[track_caller]
fn fine(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn has_no_rules(wire: &Wire) -> bool {
    wire.pod.run(redirect::read_back).unwrap().unwrap().is_empty()
}

fn listeners(wire: &Wire) -> usize {
    underpass_tests::listener::listening_ports(&wire.pod).len()
}

/// Nothing of ours is in the pod, and the agent does not count it as its own.
#[track_caller]
fn nothing_is_left(node: &Node, wire: &Wire) {
    until("the rules are gone", || has_no_rules(wire).then_some(()));
    until("the agent does not hold the pod", || node.pods().is_empty().then_some(()));
    until("nobody listens in the pod", || (listeners(wire) == 0).then_some(()));
}

/// An agent that comes back finds nothing of the ADD that failed, and the next one works.
fn joins_under_the_next_agent(node: &mut Node, wire: &Wire) {
    node.kill_all();
    assert!(has_no_rules(wire), "the failed ADD left rules");
    node.start_agent();
    let proxy = node.start_ready_proxy();
    nothing_is_left(node, wire);
    fine(&call("ADD", node, wire).run());
    assert_eq!(listeners(wire), 4);
    fine(&call("DEL", node, wire).run());
    nothing_is_left(node, wire);
    node.kill(proxy);
}

#[test]
fn an_agent_killed_at_any_step_of_an_add_leaves_nothing_and_the_next_one_takes_the_pod() {
    let (mut node, wire) = (Node::new("agent-killed", MESH), Wire::new());

    // It has Add in its socket and has not read it.
    let agent = node.start_agent();
    node.freeze(agent, true);
    let plugin = call("ADD", &node, &wire).start();
    until("the plugin waits for the plan", || {
        sleeps_in(plugin.id(), "unix_stream_read_generic|recvmsg|skb_wait").then_some(())
    });
    node.kill(agent);
    assert!(failed_for_now(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    joins_under_the_next_agent(&mut node, &wire);

    // It has sent the plan, and the plugin has installed it.
    node.kill_all();
    let agent = node.start_agent();
    let between = FakeAgent::new("agent-killed-between");
    let plugin = call_on("ADD", &between.socket, &wire).start();
    let relay = Relay::between(&between, &node);
    relay.to_agent(&relay.from_plugin());
    relay.answer();
    relay.from_plugin();
    assert!(!has_no_rules(&wire), "the plan is installed");
    node.kill(agent);
    drop(relay);
    assert!(failed_for_now(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    joins_under_the_next_agent(&mut node, &wire);

    // It waits for a proxy to connect.
    node.kill_all();
    let agent = node.start_agent();
    let plugin = call("ADD", &node, &wire).start();
    until("the agent waits for a proxy", || (node.pods().len() == 1).then_some(()));
    node.kill(agent);
    assert!(failed_for_now(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    joins_under_the_next_agent(&mut node, &wire);

    // It has asked a proxy.
    node.kill_all();
    let agent = node.start_agent();
    let proxy = FakeProxy::synced(&node);
    let plugin = call("ADD", &node, &wire).start();
    assert!(matches!(proxy.next(), (Payload::Add(_), 1)));
    node.kill(agent);
    assert!(failed_for_now(&plugin.wait_with_output().unwrap()).contains("UP-CNI-008"));
    joins_under_the_next_agent(&mut node, &wire);
}

/// Whether a process sleeps in a call whose kernel function is one of these.
fn sleeps_in(pid: u32, functions: &str) -> bool {
    let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|s| s.split_whitespace().next().map(str::to_owned));
    state.as_deref() == Some("S") && (wchan == "0" || functions.split('|').any(|f| wchan.contains(f)))
}

#[test]
fn a_proxy_killed_at_any_step_of_an_add_is_followed_by_the_next_one() {
    let (mut node, wire) = (Node::new("proxy-killed", MESH), Wire::new());
    node.start_agent();

    // Before the agent asks it.
    let first = node.start_ready_proxy();
    node.kill(first);
    let plugin = call("ADD", &node, &wire).start();
    until("the agent waits for a proxy", || (node.pods().len() == 1).then_some(()));
    let second = node.start_proxy();
    fine(&plugin.wait_with_output().unwrap());
    fine(&call("DEL", &node, &wire).run());

    // It has Add in its socket and has not answered.
    until("the proxy has taken the snapshot", || (node.get("127.0.0.1:15014", "/readyz").ok()?.0 == 200).then_some(()));
    node.freeze(second, true);
    let plugin = call("ADD", &node, &wire).start();
    until("the agent waits for the proxy", || (node.pods().len() == 1).then_some(()));
    node.kill(second);
    let third = node.start_proxy();
    fine(&plugin.wait_with_output().unwrap());
    assert_eq!(listeners(&wire), 4);
    fine(&call("DEL", &node, &wire).run());
    nothing_is_left(&node, &wire);

    // And nobody follows.
    node.freeze(third, true);
    let mut config = config(&node.agent_socket(), &ADDRESSES);
    config["deadlineMs"] = json!(1500);
    let plugin = Call::new("ADD", &path_of(&wire.pod), &config).start();
    until("the agent waits for the proxy", || (node.pods().len() == 1).then_some(()));
    node.kill(third);
    assert!(failed_for_now(&plugin.wait_with_output().unwrap()).contains("UP-AGENT-006"));
    nothing_is_left(&node, &wire);
    node.start_ready_proxy();
    fine(&call("ADD", &node, &wire).run());
}

#[test]
fn a_plugin_killed_at_any_step_leaves_nothing_with_or_without_a_del() {
    let (mut node, wire) = (Node::new("plugin-killed", MESH), Wire::new());
    let agent = node.start_agent();
    let before = settled(agent);
    let after = |node: &Node, wire: &Wire| {
        nothing_is_left(node, wire); // without a DEL
        until("the agent holds nothing of the pod", || (no_more_open(open_files(agent), before)).then_some(()));
        fine(&call("DEL", node, wire).run());
        nothing_is_left(node, wire);
    };

    // Before it connects.
    let mut plugin = call("ADD", &node, &wire).start_without_input();
    plugin.kill().unwrap();
    ended(&mut plugin);
    after(&node, &wire);

    // It has sent Add.
    node.freeze(agent, true);
    let mut plugin = call("ADD", &node, &wire).start();
    until("the plugin waits for the plan", || {
        sleeps_in(plugin.id(), "unix_stream_read_generic|recvmsg|skb_wait").then_some(())
    });
    plugin.kill().unwrap();
    ended(&mut plugin);
    node.freeze(agent, false);
    after(&node, &wire);

    // It has installed the plan, and the agent has not been told.
    let between = FakeAgent::new("plugin-killed-between");
    let mut plugin = call_on("ADD", &between.socket, &wire).start();
    let relay = Relay::between(&between, &node);
    relay.to_agent(&relay.from_plugin());
    relay.answer();
    relay.from_plugin();
    assert!(!has_no_rules(&wire));
    plugin.kill().unwrap();
    ended(&mut plugin);
    drop(relay);
    after(&node, &wire);

    // It waits for a proxy.
    let mut plugin = call("ADD", &node, &wire).start();
    until("the agent waits for a proxy", || (node.pods().len() == 1).then_some(()));
    plugin.kill().unwrap();
    ended(&mut plugin);
    after(&node, &wire);
    node.start_ready_proxy();
    fine(&call("ADD", &node, &wire).run());
}

#[test]
fn a_second_add_of_a_pod_that_is_joining_is_put_off_and_does_the_first_no_harm() {
    let (mut node, wire) = (Node::new("add-twice", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::synced(&node);
    let plugin = call("ADD", &node, &wire).start();
    let (Payload::Add(request), 1) = proxy.next() else { panic!("no Add with a descriptor") };
    assert_eq!(request.uid, "uid-1");
    let second = call("ADD", &node, &wire).run();
    assert!(failed_for_now(&second).contains("UP-AGENT-020"));
    let other_container = call("ADD", &node, &wire).with("CNI_CONTAINERID", Some("another")).run();
    assert!(failed_for_now(&other_container).contains("UP-AGENT-020"));
    assert!(!has_no_rules(&wire), "the first one's rules are still there");
    proxy.answer(Ok(()));
    fine(&plugin.wait_with_output().unwrap());
    assert_eq!(node.pods().len(), 1);
    assert!(!has_no_rules(&wire));
}

#[test]
fn an_attachment_that_comes_back_as_another_pod_replaces_the_first() {
    let (mut node, wire) = (Node::new("other-uid", MESH), Wire::new());
    node.start_agent();
    let proxy = FakeProxy::synced(&node);
    for (uid, expected) in [("uid-1", None), ("uid-2", Some("uid-1"))] {
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=client;K8S_POD_UID={uid}");
        let plugin = call("ADD", &node, &wire).with("CNI_ARGS", Some(&args)).start();
        if let Some(gone) = expected {
            let (Payload::Del(request), 0) = proxy.next() else { panic!("the proxy keeps {gone}") };
            assert_eq!(request.uid, gone);
            proxy.answer(Ok(()));
        }
        let (Payload::Add(request), 1) = proxy.next() else { panic!("no Add with a descriptor") };
        assert_eq!(request.uid, uid);
        proxy.answer(Ok(()));
        fine(&plugin.wait_with_output().unwrap());
        assert_eq!(node.pods().len(), 1);
    }
}

#[test]
fn a_del_in_every_form_takes_an_enrolled_pod_away() {
    let (mut node, wire) = (Node::new("del-forms", MESH), Wire::new());
    let agent = node.start_agent();
    node.start_ready_proxy();
    let del = call("DEL", &node, &wire);
    fine(&del.run()); // before any ADD
    fine(&call("ADD", &node, &wire).run());
    fine(&del.run());
    nothing_is_left(&node, &wire);
    let before = settled(agent);
    let mut bare: Value = serde_json::from_slice(&del.stdin).unwrap();
    bare.as_object_mut().unwrap().remove("prevResult");
    let forms = [
        ("with prevResult", del.clone()),
        ("without prevResult", Call { stdin: bare.to_string().into_bytes(), ..del.clone() }),
        ("an empty CNI_NETNS", del.clone().with("CNI_NETNS", Some(""))),
        ("no CNI_NETNS", del.clone().with("CNI_NETNS", None)),
        ("a namespace that is gone", del.clone().with("CNI_NETNS", Some("/var/run/netns/is-gone"))),
        ("no CNI_ARGS", del.clone().with("CNI_ARGS", None)),
        ("a configuration that ADD would refuse", {
            let mut config = bare.clone();
            config["cniVersion"] = json!("9.9.9");
            config["name"] = json!("");
            Call { stdin: config.to_string().into_bytes(), ..del.clone() }
        }),
    ];
    for (form, del) in forms {
        fine(&call("ADD", &node, &wire).run());
        assert_eq!(listeners(&wire), 4, "{form}");
        let output = del.run();
        assert!(output.status.success() && output.stdout.is_empty(), "{form}");
        nothing_is_left(&node, &wire);
        until("the agent has let go of everything", || (no_more_open(open_files(agent), before)).then_some(()));
    }
    // The agent cannot be told: the rules go all the same, and a DEL that is repeated tells it.
    for stdin in [b"{ garbage".to_vec(), br#"{"agentSocket":"/nonexistent/agent.sock"}"#.to_vec()] {
        fine(&call("ADD", &node, &wire).run());
        let output = Call { stdin, ..del.clone() }.run();
        assert!(output.status.success() && output.stdout.is_empty());
        fine(&del.run());
        nothing_is_left(&node, &wire);
    }
}

#[test]
fn a_path_that_never_opens_holds_up_no_call() {
    let (mut node, wire) = (Node::new("fifo", MESH), Wire::new());
    node.start_agent();
    let fifo = node.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for verb in ["ADD", "DEL", "CHECK"] {
        let mut plugin = call(verb, &node, &wire).with("CNI_NETNS", fifo.to_str()).start();
        assert_eq!(ended(&mut plugin).success(), verb == "DEL", "{verb}");
    }
}

#[test]
fn a_played_plugin_that_stops_after_installing_is_undone_by_its_deadline() {
    let (mut node, wire) = (Node::new("stops", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // Says nothing after the plan, and stays connected.
    let plugin = PlayedPlugin::connect(&node);
    let mut add = hello("stops");
    if let FromPlugin::Add { deadline_ms, .. } = &mut add {
        *deadline_ms = 600;
    }
    plugin.say(&add, Some(std::os::fd::AsFd::as_fd(&wire.pod)));
    let Some(FromAgent::Enrol { plan }) = plugin.answer() else { panic!("no plan") };
    wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
    assert_eq!(plugin.refusal(), "UP-AGENT-001");
    nothing_is_left(&node, &wire);
    // Says the wrong thing instead.
    let plugin = PlayedPlugin::connect(&node);
    plugin.say(&hello("stops"), Some(std::os::fd::AsFd::as_fd(&wire.pod)));
    let Some(FromAgent::Enrol { plan }) = plugin.answer() else { panic!("no plan") };
    wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
    plugin.say(&hello("stops"), None);
    assert_eq!(plugin.refusal(), "UP-AGENT-001");
    nothing_is_left(&node, &wire);
    // Claims to have installed what it has not.
    let plugin = PlayedPlugin::connect(&node);
    plugin.say(&hello("stops"), Some(std::os::fd::AsFd::as_fd(&wire.pod)));
    assert!(matches!(plugin.answer(), Some(FromAgent::Enrol { .. })));
    plugin.say(&FromPlugin::Installed, None);
    assert_eq!(plugin.refusal(), "UP-AGENT-005");
    // And one that does everything right joins.
    let plugin = PlayedPlugin::connect(&node);
    plugin.install(&wire.pod);
    assert_eq!(plugin.answer(), Some(FromAgent::Ready));
}
