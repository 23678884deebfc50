//! Which processes may connect as a proxy. A proxy receives descriptors of the pods' network
//! namespaces, and a pod that it accepts counts as served.

use std::fs;
use std::io;
use std::path::Path;

use netns::seqpacket::PeerCredentials;

/// Bit of CAP_SYS_ADMIN in a set of capabilities (linux/capability.h).
const SYS_ADMIN: u32 = 21;

/// Checks that the peer could enter the pods without the agent: that it is root, and has
/// CAP_SYS_ADMIN in the agent's user namespace. The error is the reason for rejecting it.
pub(crate) fn check(peer: &PeerCredentials) -> Result<(), String> {
    if peer.uid != 0 && peer.uid != nix::unistd::geteuid().as_raw() {
        return Err(format!("uid {}: only root may connect", peer.uid));
    }
    check_process(Path::new("/proc"), peer.pid)
}

fn check_process(processes: &Path, pid: i32) -> Result<(), String> {
    let process = processes.join(pid.to_string());
    let unreadable = |e: io::Error| {
        format!(
            "process {pid}: its capabilities cannot be read ({e}): it has exited, or the agent \
             does not see the node's processes (hostPID: true)"
        )
    };
    let status = fs::read_to_string(process.join("status")).map_err(unreadable)?;
    // In a user namespace of its own, any process may have all capabilities.
    let user = |process: &Path| fs::read_link(process.join("ns/user"));
    let own = user(&processes.join("self")).map_err(unreadable)?;
    if user(&process).map_err(unreadable)? != own {
        return Err(format!("process {pid}: it is in another user namespace"));
    }
    if !has_sys_admin(&status) {
        return Err(format!(
            "process {pid}: it lacks CAP_SYS_ADMIN, with which a proxy enters pods"
        ));
    }
    Ok(())
}

/// Whether CAP_SYS_ADMIN is effective, from the text of a process's `status` file.
fn has_sys_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set >> SYS_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_effective_set_counts() {
        let status = |effective: &str| {
            format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t0\n")
        };
        assert!(has_sys_admin(&status("000001ffffffffff")));
        assert!(has_sys_admin(&status("0000000000200000")));
        // containerd's default set, and everything else.
        assert!(!has_sys_admin(&status("00000000a80425fb")));
        assert!(!has_sys_admin(&status("000001ffffdfffff")));
        for damaged in [
            "",
            "CapEff:\n",
            "CapEff:\tx\n",
            "CapPrm:\t000001ffffffffff\n",
        ] {
            assert!(!has_sys_admin(damaged), "{damaged:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_visible_is_rejected() {
        for pid in [0, i32::MAX] {
            let reason = check_process(Path::new("/proc"), pid).unwrap_err();
            assert!(reason.contains("hostPID"), "{reason}");
        }
    }
}
