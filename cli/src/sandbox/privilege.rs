//! Network namespaces need root, or a user namespace in which we are root.

use std::fs::{self, File};

use error_code::sandbox as codes;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getgid, getuid};

use super::{Layout, Report};
use crate::failure::failure;

/// Makes this process able to make and enter the sandbox's namespaces, and returns where the sandbox is. Must come before
/// any thread is started. A user who is not root becomes root of a user namespace: that of the running sandbox if there
/// is one.
pub(crate) fn become_able() -> anyhow::Result<Layout> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let layout = Layout::of_user(uid);
    if uid == 0 {
        return Ok(layout);
    }
    let denied = |what: &str, e: &dyn std::fmt::Display| failure(&codes::PRIVILEGE, format!("{what}: {e}"));
    if let Some(report) = Report::read(&layout)? {
        let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", report.keeper_pid));
        let own = open("user").and_then(|user| Ok((user, open("net")?)));
        let (user, net) = own.map_err(|e| denied("the namespaces of the sandbox cannot be opened", &e))?;
        setns(user, CloneFlags::CLONE_NEWUSER)
            .and_then(|()| setns(net, CloneFlags::CLONE_NEWNET))
            .map_err(|e| denied("the namespaces of the sandbox cannot be entered", &e))?;
        return Ok(layout);
    }
    // With a network namespace of our own, for nobody but its owner may come back to one.
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|e| denied("no user namespace can be made", &e))?;
    let map = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| denied("the user namespace cannot be set up", &e))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {uid} 1"))?;
    map("gid_map", format!("0 {gid} 1"))?;
    Ok(layout)
}
