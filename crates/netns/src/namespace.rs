//! A network namespace, held open by a file descriptor.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;

/// Why something is not a network namespace that we can use.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The path could not be opened. Likely cause: the sandbox is gone already.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// The path that was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file exists but is no namespace (a regular file, a directory, a socket …).
    #[error("{what} is not a namespace (no nsfs file)")]
    NotANamespace {
        /// A path, or "the passed file descriptor".
        what: String,
    },
    /// It is a namespace, but of another type (mount, user, pid …).
    #[error("{what} is a namespace, but not a network namespace")]
    NotNetwork {
        /// A path, or "the passed file descriptor".
        what: String,
    },
    /// Entering failed. Likely cause: CAP_SYS_ADMIN is missing.
    #[error("cannot enter the network namespace: {0}")]
    Enter(#[source] io::Error),
    /// A new namespace could not be made. Likely cause: CAP_SYS_ADMIN is missing or a limit is reached.
    #[error("cannot create a network namespace: {0}")]
    Create(#[source] io::Error),
}

/// What tells one namespace from another: device and inode number of its nsfs file.
///
/// An inode number may be used again after the namespace is gone, so an id is only good while somebody holds it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetNsId {
    /// Device number of nsfs.
    pub dev: u64,
    /// Inode number within nsfs.
    pub ino: u64,
}

impl fmt::Display for NetNsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

thread_local! {
    /// Where this thread is, if that is known: opening it again for each visit to a pod would cost more than the visit.
    static HOME: Cell<Option<NetNs>> = const { Cell::new(None) };
}

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    id: NetNsId,
}

impl NetNs {
    /// Opens the namespace that a path names and checks that it is one.
    ///
    /// # Errors
    /// [`NetNsError::Open`], [`NetNsError::NotANamespace`] or [`NetNsError::NotNetwork`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetNsError> {
        let path = path.as_ref();
        // Without waiting: whoever names a FIFO gets an error, too.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|source| NetNsError::Open { path: path.to_path_buf(), source })?;
        Self::checked(file.into(), || path.display().to_string())
    }

    /// Takes a descriptor that somebody passed to us and checks that it is a network namespace.
    ///
    /// # Errors
    /// [`NetNsError::NotANamespace`] or [`NetNsError::NotNetwork`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetNsError> {
        Self::checked(fd, || "the passed file descriptor".to_owned())
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`NetNsError::Open`] when /proc is not mounted.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Makes a new, empty namespace (its loopback interface is down). The calling thread stays where it is.
    ///
    /// # Errors
    /// [`NetNsError::Create`].
    pub fn create() -> Result<Self, NetNsError> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::Create(e.into()))?;
            Self::current()
        });
        made.join().unwrap_or_else(|_| Err(NetNsError::Create(io::Error::other("the creating thread died"))))
    }

    fn checked(fd: OwnedFd, what: impl Fn() -> String) -> Result<Self, NetNsError> {
        const NSFS_MAGIC: i64 = 0x6e73_6673; // linux/magic.h
        let fs = nix::sys::statfs::fstatfs(&fd).map_err(|_| NetNsError::NotANamespace { what: what() })?;
        if fs.filesystem_type().0 as i64 != NSFS_MAGIC {
            return Err(NetNsError::NotANamespace { what: what() });
        }
        // SAFETY: the descriptor is open, and NS_GET_NSTYPE takes no argument and writes no memory.
        let kind = unsafe { ns_get_nstype(fd.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(NetNsError::NotNetwork { what: what() });
        }
        let stat = fstat(&fd).map_err(|_| NetNsError::NotANamespace { what: what() })?;
        Ok(Self { fd, id: NetNsId { dev: stat.st_dev, ino: stat.st_ino } })
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Another handle on the same namespace.
    ///
    /// # Errors
    /// [`NetNsError::Enter`] when no descriptor is free.
    pub fn try_clone(&self) -> Result<Self, NetNsError> {
        let fd = self.fd.try_clone().map_err(NetNsError::Enter)?;
        Ok(Self { fd, id: self.id })
    }

    /// Runs `f` with the calling thread inside the namespace, then returns the thread to where it was.
    ///
    /// `f` must not wait for long: other work of this thread would run in the pod's namespace otherwise, which is why
    /// it is a plain closure and never a future. If the way back is barred the process is aborted, for a thread that
    /// stays in a pod's namespace would open the node's own sockets there.
    ///
    /// # Errors
    /// [`NetNsError::Enter`]; then `f` did not run.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> Result<T, NetNsError> {
        struct Return(Option<NetNs>);
        impl Drop for Return {
            fn drop(&mut self) {
                let Some(home) = self.0.take() else { return };
                if let Err(e) = setns(&home.fd, CloneFlags::CLONE_NEWNET) {
                    eprintln!("fatal: cannot return from a pod's network namespace: {e}");
                    std::process::abort();
                }
                HOME.set(Some(home));
            }
        }
        // Taken, so that whoever runs something within `f` looks where the thread is.
        let here = HOME.take().map_or_else(Self::current, Ok)?;
        if here.id != self.id {
            setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::Enter(e.into()))?;
        }
        let home = Return(Some(here));
        let result = f();
        drop(home);
        Ok(result)
    }

    /// Moves the calling thread into the namespace for good.
    ///
    /// # Errors
    /// [`NetNsError::Enter`].
    pub fn enter(&self) -> Result<(), NetNsError> {
        HOME.set(None);
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::Enter(e.into()))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

nix::ioctl_none_bad!(
    /// NS_GET_NSTYPE of linux/nsfs.h: the CLONE_NEW* flag of a namespace file.
    ns_get_nstype,
    nix::request_code_none!(0xb7, 0x3)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_file_is_refused() {
        assert!(matches!(NetNs::open("/etc/hostname"), Err(NetNsError::NotANamespace { .. })));
        assert!(matches!(NetNs::open("/nonexistent/ns"), Err(NetNsError::Open { .. })));
    }

    #[test]
    fn a_namespace_of_another_type_is_refused() {
        assert!(matches!(NetNs::open("/proc/self/ns/mnt"), Err(NetNsError::NotNetwork { .. })));
    }

    #[test]
    fn run_enters_and_returns() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: run_enters_and_returns needs root");
            return;
        }
        let home = NetNs::current().unwrap();
        let other = NetNs::create().unwrap();
        assert_ne!(home.id(), other.id());
        let third = NetNs::create().unwrap();
        for _ in 0..2 {
            let inside = other.run(|| {
                let nested = third.run(|| NetNs::current().unwrap().id()).unwrap();
                (NetNs::current().unwrap().id(), nested)
            });
            assert_eq!(inside.unwrap(), (other.id(), third.id()));
            assert_eq!(NetNs::current().unwrap().id(), home.id());
        }
        std::thread::spawn(move || {
            third.run(|| ()).unwrap();
            other.enter().unwrap();
            third.run(|| ()).unwrap();
            assert_eq!(NetNs::current().unwrap().id(), other.id(), "that is where the thread lives now");
        })
        .join()
        .unwrap();
    }
}
