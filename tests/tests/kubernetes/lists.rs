//! Lists are streamed, or fetched in one response if the API server does not stream them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use underpass_tests::cluster::istiod::NAMESPACE;
use underpass_tests::cluster::{AgentNode, Cluster, missing};
use underpass_tests::folder;
use underpass_tests::sandbox::until;
use underpass_tests::skip::skip;

use super::fixture::{AMBIENT, add_pod, cluster_or_skip};

const NOT_STREAMED: &str = "event=\"list_not_streamed\"";

fn enrol_a_pod(cluster: &Cluster, name: &str) -> AgentNode {
    cluster.namespace(name, AMBIENT);
    let node = AgentNode::start(cluster, name);
    let pod = cluster.pod(&node.cluster_node, name, "pod");
    add_pod(&node, &pod);
    node.await_verified(&pod);
    node
}

/// A cluster whose API server records the requests of agents in the returned file.
fn audited_cluster(folder: &Path, flags: &[&str]) -> (Cluster, PathBuf) {
    let agents = format!("system:serviceaccount:{NAMESPACE}:underpass-agent");
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata", "users": [agents] }, { "level": "None" }],
    });
    let [policy_file, log] = ["audit-policy.json", "audit.log"].map(|name| folder.join(name));
    fs::create_dir_all(folder).unwrap();
    fs::write(&policy_file, policy.to_string()).unwrap();
    let audit = [
        format!("--audit-policy-file={}", policy_file.display()),
        format!("--audit-log-path={}", log.display()),
    ];
    let flags: Vec<&str> = audit
        .iter()
        .map(String::as_str)
        .chain(flags.iter().copied())
        .collect();
    (Cluster::start_with(folder, &flags), log)
}

/// The queries of agents' successful requests with this verb and resource, in order.
fn queries(log: &Path, verb: &str, resource: &str) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    let requests = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    let chosen = requests.filter(|r| {
        let succeeded = r["responseStatus"]["code"] == 200;
        r["verb"] == verb && r["objectRef"]["resource"] == resource && succeeded
    });
    let query = |r: Value| {
        let uri = r["requestURI"].as_str().unwrap().to_owned();
        uri.split_once('?')
            .map(|(_, query)| query.to_owned())
            .unwrap_or_default()
    };
    chosen.map(query).collect()
}

/// The value of a parameter of a query.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
}

#[test]
fn lists_are_streamed() {
    let cluster = cluster_or_skip!();
    let node = enrol_a_pod(&cluster, "streamed");
    let log = node.processes.log("agent");
    assert!(!log.contains(NOT_STREAMED), "{log}");
}

#[test]
fn lists_come_from_the_watch_cache_if_the_api_server_does_not_stream() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let (cluster, audit) = audited_cluster(
        &folder::until_exit("unstreamed-lists"),
        &["--feature-gates=WatchList=false"],
    );
    let node = enrol_a_pod(&cluster, "unstreamed");
    assert!(node.processes.log("agent").contains(NOT_STREAMED));
    for resource in ["pods", "namespaces", "nodes"] {
        let lists = queries(&audit, "list", resource);
        let cached = |query: &String| parameter(query, "resourceVersion").as_deref() == Some("0");
        assert!(
            !lists.is_empty() && lists.iter().all(cached),
            "lists of {resource} come from the watch cache: {lists:?}"
        );
    }
}

#[test]
fn an_error_of_the_api_server_does_not_end_streaming() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let (cluster, audit) = audited_cluster(&folder::until_exit("rejected-lists"), &[]);
    cluster.namespace("rejected", AMBIENT);
    let mut node = AgentNode::new(&cluster, "rejected");
    AgentNode::revoke(&cluster);
    node.start_agent(&[]);
    node.start_proxy();
    for resource in ["pods", "namespaces", "node"] {
        let interrupted = format!("watch of {resource} interrupted");
        until(&interrupted, || {
            node.processes
                .log("agent")
                .contains(&interrupted)
                .then_some(())
        });
    }
    AgentNode::grant(&cluster);
    node.await_ready();
    let log = node.processes.log("agent");
    assert!(!log.contains(NOT_STREAMED), "{log}");
    assert_eq!(queries(&audit, "list", "namespaces"), Vec::<String>::new());

    let watches = ["pods", "namespaces", "nodes"].map(|r| queries(&audit, "watch", r));
    for query in watches.iter().flatten() {
        let seconds: u32 = parameter(query, "timeoutSeconds").unwrap().parse().unwrap();
        assert!((300..=600).contains(&seconds), "{query}");
    }
    let streamed = |query: &String| parameter(query, "sendInitialEvents").is_some();
    assert!(
        watches.iter().all(|w| w.iter().any(streamed)),
        "{watches:?}"
    );
}
