//! Return of freed memory to the kernel.

use std::hint::black_box;
use std::time::Duration;

/// How often a thread returns freed memory.
pub(super) const PURGE_INTERVAL: Duration = Duration::from_secs(10);

/// Size of an allocation, in bytes, which is above those that jemalloc caches for a thread.
const SIZE: usize = 64 * 1024;
/// Number of allocations after which jemalloc checks what it may return. Each counts twice, when it
/// is made and when it is freed (`ARENA_DECAY_NTICKS_PER_UPDATE` is 1000).
const COUNT: usize = 500;

/// Makes jemalloc return the memory that this thread freed more than about ten seconds ago.
/// jemalloc checks the time only while the thread allocates, so that an idle one would keep the
/// memory of a burst for ever. Its background threads, which would do this, do not exist with musl.
/// Takes less than a millisecond: the allocations are not written to.
pub(super) fn purge() {
    for _ in 0..COUNT {
        drop(black_box(Vec::<u8>::with_capacity(SIZE)));
    }
}
