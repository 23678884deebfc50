//! Starting processes in a network namespace and tying their lifetime to the parent's.
//!
//! Only the sandbox and the tests, which act as a container runtime, start processes; the plugin,
//! the agent and the proxy never do.

#![allow(clippy::disallowed_types)] // the exception described above

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::{NetNs, NetNsError};

/// Makes `command` start inside `netns`.
///
/// # Errors
/// If no file descriptor is available.
pub fn in_netns<'c>(
    command: &'c mut Command,
    netns: &NetNs,
) -> Result<&'c mut Command, NetNsError> {
    let netns = netns.try_clone()?;
    // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe; nothing is
    // allocated.
    Ok(unsafe {
        command.pre_exec(move || setns(&netns, CloneFlags::CLONE_NEWNET).map_err(Into::into))
    })
}

/// Makes the kernel kill the process when the *thread* that spawns it exits, so that a killed
/// parent leaves no processes behind.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, which are
    // async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() == parent {
                Ok(())
            } else {
                Err(nix::errno::Errno::ESRCH.into())
            }
        })
    }
}

/// Unblocks all signals in the process, whichever ones the parent has blocked.
pub fn unblock_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only sigprocmask(2) is called, which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)) }
}

/// Makes the process inherit `fd` under the same number.
pub fn inherit(command: &mut Command, fd: OwnedFd) -> &mut Command {
    // SAFETY: between fork and exec only fcntl(2) is called, which is async-signal-safe; the
    // descriptor is owned by the closure and so stays open until then.
    unsafe {
        command.pre_exec(move || {
            let flags = nix::fcntl::FdFlag::empty();
            nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(flags))?;
            debug_assert!(fd.as_raw_fd() >= 0);
            Ok(())
        })
    }
}
