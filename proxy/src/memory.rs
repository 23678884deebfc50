//! Return of freed memory to the kernel. jemalloc does it while a thread allocates, so that idle
//! threads would keep the memory of a burst for ever: what they have cached, and pages that nothing
//! uses. Its background threads, which would return the pages, do not exist with musl.

use std::sync::Arc;
use std::time::Duration;

use telemetry::Metrics;
use tikv_jemalloc_ctl::{Access, AsName, arenas};
use tokio::time::MissedTickBehavior;

/// How often a thread returns freed memory.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

/// Frees what jemalloc keeps for the next allocations of this thread: up to 200 objects of each
/// size, each of which may keep several pages in use. Takes microseconds.
pub(crate) fn empty_thread_cache() {
    let cache = b"thread.tcache.enabled\0".name();
    for enabled in [false, true] {
        let _ = cache.write(enabled); // fails only if the key does not exist
    }
}

/// Returns the pages that nothing uses, of all threads.
fn return_pages() {
    for arena in 0..arenas::narenas::read().unwrap_or_default() {
        let key = format!("arena.{arena}.dirty_decay_ms\0");
        let decay = key.as_bytes().name();
        // An arena that no thread uses has no such key.
        if let Ok(usual) = Access::<isize>::read(decay) {
            for time in [0, usual] {
                let _ = decay.write(time); // as above
            }
        }
    }
}

/// Keeps the process small: ends metric series, and returns freed memory while the data threads
/// have little to do. Others use it again soon, and jemalloc returns what they do not use.
pub(crate) async fn keep_small(metrics: Arc<Metrics>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut busy = metrics.threads.busy_time();
    loop {
        interval.tick().await;
        metrics.remove_ended();
        empty_thread_cache();
        let now = metrics.threads.busy_time();
        if now - busy < INTERVAL / 10 {
            return_pages();
        }
        busy = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_jemalloc_exist() {
        let first = b"arena.0.dirty_decay_ms\0".name();
        let usual = Access::<isize>::read(first).unwrap();
        assert!(usual > 0);
        return_pages();
        assert_eq!(Access::<isize>::read(first), Ok(usual));
        let cache = b"thread.tcache.enabled\0".name();
        empty_thread_cache();
        assert_eq!(Access::<bool>::read(cache), Ok(true));
    }
}
