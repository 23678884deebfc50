//! Chunks of a stream that have not been sent yet. An empty DATA frame would mark the end as well,
//! but h2 closes a connection with more than a hundred of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// The number of chunks of a stream that h2 still holds. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsent(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    chunks: AtomicUsize,
    all_sent: Notify,
}

/// A chunk, which h2 drops when it was sent.
struct Chunk {
    bytes: Bytes,
    unsent: Unsent,
}

impl Unsent {
    /// Counts a chunk until the result is dropped.
    pub(super) fn track(&self, bytes: Bytes) -> Bytes {
        self.0.chunks.fetch_add(1, Ordering::Relaxed);
        let unsent = self.clone();
        Bytes::from_owner(Chunk { bytes, unsent })
    }

    /// Waits until all chunks were sent.
    pub(super) async fn until_sent(&self) {
        while self.0.chunks.load(Ordering::Acquire) > 0 {
            self.0.all_sent.notified().await; // a notification is kept for the next call
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.unsent.0.chunks.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unsent.0.all_sent.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn all_chunks_and_their_parts_are_awaited() {
        let unsent = Unsent::default();
        let is_sent = || {
            let sent = pin!(unsent.until_sent());
            sent.poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        };
        assert!(is_sent());
        let mut first = unsent.track(Bytes::from_static(b"first"));
        let second = unsent.track(Bytes::from_static(b"second"));
        let part = first.split_to(2);
        drop(first);
        assert!(!is_sent());
        drop(second);
        assert!(!is_sent());
        assert_eq!(part, "fi");
        drop(part);
        assert!(is_sent());
        let third = unsent.track(Bytes::new());
        assert!(!is_sent());
        drop(third);
        assert!(is_sent());
    }
}
