//! Acquires the privileges for network namespaces: root, or root in a user namespace.

use std::fs::{self, File};

use error_code::sandbox as codes;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getgid, getuid};

use super::{Layout, SandboxReport};
use crate::failure::failure;

/// Lets this process create and enter the sandbox's namespaces, and returns the sandbox's layout.
/// An unprivileged user becomes root in a user namespace: that of the running sandbox, if there is
/// one. Must be called before any thread is started.
pub(crate) fn acquire_privileges() -> anyhow::Result<Layout> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let layout = Layout::of_user(uid);
    if uid == 0 {
        return Ok(layout);
    }
    let denied = |operation: &str, e: &dyn std::fmt::Display| {
        failure(&codes::PRIVILEGE, format!("{operation}: {e}"))
    };
    if let Some(report) = SandboxReport::read(&layout)? {
        let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", report.keeper_pid));
        let own = open("user").and_then(|user| Ok((user, open("net")?)));
        let (user, net) =
            own.map_err(|e| denied("cannot open the namespaces of the sandbox", &e))?;
        setns(user, CloneFlags::CLONE_NEWUSER)
            .and_then(|()| setns(net, CloneFlags::CLONE_NEWNET))
            .map_err(|e| denied("cannot enter the namespaces of the sandbox", &e))?;
        return Ok(layout);
    }
    // Returning to a network namespace requires privileges in its owning user namespace, so a new
    // one is created.
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|e| denied("cannot create a user namespace", &e))?;
    let map = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| denied("cannot set up the user namespace", &e))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {uid} 1"))?;
    map("gid_map", format!("0 {gid} 1"))?;
    Ok(layout)
}
