//! Descriptors of the process, which every connection of every pod needs.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, getrlimit};

/// The part of the limit that is kept free, for pods with few connections, new pods, and the
/// proxy's own endpoints.
const RESERVE: usize = 8;

/// The limit of open descriptors.
pub(super) struct Descriptors {
    /// How many may be in use before a pod with many connections gets no more.
    pub(super) limit: usize,
    /// Any descriptor, to be duplicated; `None` if none could be opened.
    any: Option<File>,
}

impl Descriptors {
    /// The limit of this process.
    pub(super) fn of_process() -> Self {
        let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self::new(usize::try_from(soft).unwrap_or(usize::MAX))
    }

    fn new(most: usize) -> Self {
        Self {
            limit: most - most / RESERVE,
            any: File::open("/dev/null").ok(),
        }
    }

    /// None is free, which matters from this many connections on.
    #[cfg(test)]
    pub(super) fn none(connections: usize) -> Self {
        Self {
            limit: connections * RESERVE,
            any: None,
        }
    }

    /// Whether so many are in use that the reserve has begun, beside `connections` open ones.
    pub(super) fn are_short(&self, connections: usize) -> bool {
        // A connection takes at most a few, so that few connections need no system call.
        connections >= self.limit / RESERVE && self.used().is_none_or(|used| used >= self.limit)
    }

    /// The number of descriptors in use, or fewer if there are gaps between them: the kernel
    /// always assigns the lowest one that is free. `None` if there is none.
    pub(super) fn used(&self) -> Option<usize> {
        let lowest = self.any.as_ref().map(File::try_clone);
        let lowest = lowest.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
        usize::try_from(lowest.ok()?.as_raw_fd()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_short_once_the_reserve_has_begun() {
        let is_short = |most| Descriptors::new(most).are_short(usize::MAX);
        assert!(is_short(2), "standard input and output are open");
        assert!(!is_short(usize::MAX));
        assert!(!Descriptors::none(1).are_short(0), "few connections");
    }
}
