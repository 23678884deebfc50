//! Flags that the agent rejects, each with an error that names them.

use std::process::Command;

use netns::NetNs;
use underpass_tests::binaries::binary;
use underpass_tests::folder::folder;

fn refused(arguments: &[&str]) -> String {
    let folder = folder("kube-flags");
    let netns = NetNs::create().unwrap();
    let mut command = Command::new(binary("underpass-agent"));
    command
        .env_clear()
        .args(["--node", "node", "--admin-addr", "[::]:0"])
        .args(arguments);
    command
        .arg("--agent-socket")
        .arg(folder.join("agent.sock"))
        .arg("--zds-socket")
        .arg(folder.join("zds.sock"));
    command.arg("--state-dir").arg(folder.join("state"));
    let output = netns::process::in_netns(&mut command, &netns)
        .unwrap()
        .output()
        .unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn invalid_flag_combinations_are_rejected_with_the_reason() {
    for (arguments, parts) in [
        (vec![], &["--mesh-file", "--kubernetes"][..]),
        (
            vec!["--kubernetes", "--mesh-file", "/nowhere"],
            &["--mesh-file", "--kubernetes"],
        ),
        (
            vec!["--kubernetes", "--kubeconfig", "/nowhere/config"],
            &["UP-AGENT-024"],
        ),
        (
            vec!["--kubernetes", "--kubeconfig", "/dev/null"],
            &["UP-AGENT-024"],
        ),
        // No pod's service account is there either.
        (vec!["--kubernetes"], &["UP-AGENT-024"]),
    ] {
        let error = refused(&arguments);
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{arguments:?}: {error}"
        );
    }
}
