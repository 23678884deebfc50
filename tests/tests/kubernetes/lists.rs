//! Lists come as a stream, and in pages from a server that does not stream them.

use underpass_tests::cluster::{AgentNode, Cluster, missing};
use underpass_tests::folder;
use underpass_tests::skip::skip;

use super::scene::{AMBIENT, added, cluster_or_skip};

const IN_PAGES: &str = "the API server does not stream this list";

fn joins(cluster: &Cluster, name: &str) -> AgentNode {
    cluster.namespace(name, AMBIENT);
    let node = AgentNode::start(cluster, name);
    let pod = cluster.pod(&node.place, name, "pod");
    added(&node, &pod);
    node.await_verified(&pod);
    node
}

#[test]
fn lists_are_streamed() {
    let cluster = cluster_or_skip!("lists_are_streamed");
    let node = joins(&cluster, "streamed");
    let log = node.processes.log("agent");
    assert!(!log.contains(IN_PAGES), "{log}");
}

#[test]
fn an_api_server_that_does_not_stream_lists_is_asked_in_pages() {
    let test = "an_api_server_that_does_not_stream_lists_is_asked_in_pages";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let cluster = Cluster::start_with(&folder::until_exit(test), &["--feature-gates=WatchList=false"]);
    let node = joins(&cluster, "paged");
    assert!(node.processes.log("agent").contains(IN_PAGES));
}
