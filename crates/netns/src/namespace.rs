//! A network namespace, kept alive by a file descriptor.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{FileStat, fstat, stat};

/// A network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The path cannot be opened. Likely cause: the sandbox was removed already.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// The path of the namespace.
        path: PathBuf,
        /// The error of open(2).
        source: io::Error,
    },
    /// The file exists, but is not a namespace (a regular file, a directory, a socket …).
    #[error("{what} is not a namespace (not an nsfs file)")]
    NotANamespace {
        /// A path, or "the received file descriptor".
        what: String,
    },
    /// The file is a namespace of another type (mount, user, pid …).
    #[error("{what} is a namespace, but not a network namespace")]
    NotNetwork {
        /// A path, or "the received file descriptor".
        what: String,
    },
    /// The namespace cannot be entered. Likely cause: CAP_SYS_ADMIN is missing.
    #[error("cannot enter the network namespace: {0}")]
    Enter(#[source] io::Error),
    /// A namespace cannot be created. Likely cause: CAP_SYS_ADMIN is missing or a limit is reached.
    #[error("cannot create a network namespace: {0}")]
    Create(#[source] io::Error),
}

/// Identifies a network namespace by the device and inode number of its nsfs file.
///
/// The kernel may reuse an inode number, so an id is valid only while the namespace is kept alive.
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
    /// The namespace of this thread, if known: opening it for each [`NetNs::run`] would dominate
    /// the cost.
    static HOME: Cell<Option<NetNs>> = const { Cell::new(None) };
}

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    id: NetNsId,
}

impl NetNs {
    /// Opens the network namespace at a path.
    ///
    /// # Errors
    /// [`NetNsError::Open`], [`NetNsError::NotANamespace`] or [`NetNsError::NotNetwork`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetNsError> {
        let path = path.as_ref();
        // Non-blocking, so that opening a FIFO fails instead of hanging.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        let file = file.map_err(|source| NetNsError::Open {
            path: path.to_path_buf(),
            source,
        })?;
        Self::from_nsfs(file.into(), || path.display().to_string())
    }

    /// Wraps a descriptor received from another process, after checking that it is a network
    /// namespace.
    ///
    /// # Errors
    /// [`NetNsError::NotANamespace`] or [`NetNsError::NotNetwork`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetNsError> {
        Self::from_nsfs(fd, || "the received file descriptor".to_owned())
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetNsError::Open`] if /proc is not mounted.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Creates a namespace, whose loopback interface is down. The calling thread does not enter it.
    ///
    /// # Errors
    /// [`NetNsError::Create`].
    pub fn create() -> Result<Self, NetNsError> {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::Create(e.into()))?;
            Self::current()
        });
        thread.join().unwrap_or_else(|_| {
            Err(NetNsError::Create(io::Error::other(
                "the creating thread panicked",
            )))
        })
    }

    /// Checks that a descriptor is a network namespace.
    fn from_nsfs(fd: OwnedFd, what: impl Fn() -> String) -> Result<Self, NetNsError> {
        const NSFS_MAGIC: i64 = 0x6e73_6673; // linux/magic.h
        let fs = nix::sys::statfs::fstatfs(&fd)
            .map_err(|_| NetNsError::NotANamespace { what: what() })?;
        if fs.filesystem_type().0 as i64 != NSFS_MAGIC {
            return Err(NetNsError::NotANamespace { what: what() });
        }
        // SAFETY: the descriptor is open, and NS_GET_NSTYPE takes no argument and writes no memory.
        let kind = unsafe { ns_get_nstype(fd.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(NetNsError::NotNetwork { what: what() });
        }
        let stat = fstat(&fd).map_err(|_| NetNsError::NotANamespace { what: what() })?;
        Ok(Self {
            fd,
            id: NetNsId {
                dev: stat.st_dev,
                ino: stat.st_ino,
            },
        })
    }

    /// The id of the namespace.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Whether the namespace belongs to this process's user namespace, so that users have the same
    /// ids in both; false if that cannot be determined.
    pub fn is_of_own_users(&self) -> bool {
        // SAFETY: the descriptor is open, and NS_GET_USERNS takes no argument and writes no memory.
        let owner = unsafe { ns_get_userns(self.fd.as_raw_fd()) };
        let Ok(owner) = owner else {
            return false; // the owner is an ancestor
        };
        // SAFETY: the kernel has just opened this descriptor for the caller, who alone knows it.
        let owner = unsafe { OwnedFd::from_raw_fd(owner) };
        let id = |stat: FileStat| (stat.st_dev, stat.st_ino);
        let own = stat("/proc/thread-self/ns/user").map(id);
        own.is_ok() && fstat(&owner).map(id) == own
    }

    /// Duplicates the handle.
    ///
    /// # Errors
    /// [`NetNsError::Enter`] if no file descriptor is available.
    pub fn try_clone(&self) -> Result<Self, NetNsError> {
        let fd = self.fd.try_clone().map_err(NetNsError::Enter)?;
        Ok(Self { fd, id: self.id })
    }

    /// Runs `f` with the calling thread inside the namespace, then returns the thread to its own.
    ///
    /// `f` is a closure and not a future, because other tasks of this thread would run in the
    /// namespace while it waits; it must not block for long. The process aborts if the thread
    /// cannot return, because the thread would open the node's own sockets in a pod's namespace.
    ///
    /// # Errors
    /// [`NetNsError::Enter`]; `f` did not run.
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
        // Take the value, so that a nested `run` within `f` reads the current namespace.
        let here = HOME.take().map_or_else(Self::current, Ok)?;
        if here.id != self.id {
            setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|e| NetNsError::Enter(e.into()))?;
        }
        let home = Return(Some(here));
        let result = f();
        drop(home);
        Ok(result)
    }

    /// Moves the calling thread into the namespace permanently.
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
    /// NS_GET_USERNS (linux/nsfs.h): opens the user namespace that owns a namespace.
    ns_get_userns,
    nix::request_code_none!(0xb7, 0x1)
);
nix::ioctl_none_bad!(
    /// NS_GET_NSTYPE (linux/nsfs.h): returns the CLONE_NEW* flag of a namespace.
    ns_get_nstype,
    nix::request_code_none!(0xb7, 0x3)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_this_process_belong_to_its_users() {
        assert!(NetNs::current().unwrap().is_of_own_users());
    }

    #[test]
    fn a_regular_file_is_rejected() {
        assert!(matches!(
            NetNs::open("/etc/hostname"),
            Err(NetNsError::NotANamespace { .. })
        ));
        assert!(matches!(
            NetNs::open("/nonexistent/ns"),
            Err(NetNsError::Open { .. })
        ));
    }

    #[test]
    fn a_namespace_of_another_type_is_rejected() {
        assert!(matches!(
            NetNs::open("/proc/self/ns/mnt"),
            Err(NetNsError::NotNetwork { .. })
        ));
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
            assert_eq!(
                NetNs::current().unwrap().id(),
                other.id(),
                "the thread entered that namespace permanently"
            );
        })
        .join()
        .unwrap();
    }
}
