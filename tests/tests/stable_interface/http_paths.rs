//! Ports and paths of the admin interfaces of agent and proxy.

use underpass_tests::node::{MESH, TestNode};

use super::assert_golden;

/// The interfaces, and paths that they serve without listing them.
const INTERFACES: [(&str, &str, &[&str]); 4] = [
    ("agent", "127.0.0.1:15014", &[]),
    ("proxy", "127.0.0.1:15000", &["/"]),
    ("proxy", "127.0.0.1:15020", &[]),
    ("proxy", "127.0.0.1:15021", &[]),
];

#[test]
fn http_paths_remain() {
    let mut node = TestNode::new("http-paths", MESH);
    node.start_agent();
    node.start_ready_proxy();
    let mut lines = Vec::new();
    for (program, address, unlisted) in INTERFACES {
        let (status, listed) = node.get(address, "/nothing").unwrap();
        assert_eq!(status, 404);
        let (_, listed) = listed.trim().split_once(": ").unwrap();
        for path in listed.split(' ').chain(unlisted.iter().copied()) {
            // Values that no path accepts, so that no request takes effect or long.
            let (status, _) = node.get(address, &path.replace('…', "x")).unwrap();
            assert!(served(status, path), "{path}: {status}");
            lines.push(format!("{program} {address} {path}"));
        }
    }
    lines.sort();
    assert_golden("http_paths.golden", &lines);
}

/// Whether the status shows that there is such a path. `/why` has no pod to explain.
fn served(status: u16, path: &str) -> bool {
    status != 404 || path.starts_with("/why")
}
