//! Received bytes that wait for the application, at the cost of their number.

use std::collections::VecDeque;

use byte_relay::Chunks;
use bytes::{Bytes, BytesMut};

/// Smaller chunks are copied: each may be a slice of a block of 8 KiB and more, which it would keep
/// in memory.
pub(crate) const SMALL: usize = 4 * 1024;
/// Size at which copied chunks are complete, in bytes.
const FULL: usize = 16 * 1024;
/// The same for bytes that are copied in any case, because they are passed on in such writes.
const LARGE: usize = 64 * 1024;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    chunks: VecDeque<Bytes>,
    /// Copied chunks, behind all others.
    tail: BytesMut,
}

impl ByteQueue {
    /// Appends a chunk.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if chunk.len() < SMALL {
            self.tail.extend_from_slice(&chunk);
            if self.tail.len() >= FULL {
                self.complete_tail();
            }
        } else {
            self.complete_tail();
            self.chunks.push_back(chunk);
        }
    }

    /// Appends a copy of some bytes.
    pub(crate) fn copy(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LARGE - self.tail.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.tail.extend_from_slice(now);
            if self.tail.len() >= LARGE {
                self.complete_tail();
            }
            bytes = later;
        }
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    /// Removes the first bytes, which are never empty; `None` if there are none.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.complete_tail();
        }
        self.chunks.pop_front()
    }

    /// Removes the first bytes: the first chunk, and others up to `most` bytes.
    pub(crate) fn pop_many(&mut self, most: usize) -> Option<Chunks> {
        let mut popped = Chunks::from(self.pop()?);
        let mut length = popped.len();
        self.complete_tail();
        while let Some(next) = self.chunks.front()
            && length + next.len() <= most
        {
            length += next.len();
            popped.push(next.clone());
            self.chunks.pop_front();
        }
        Some(popped)
    }

    fn complete_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks
                .push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn chunks_of_all_sizes_stay_in_order() {
        let mut queue = ByteQueue::default();
        let sizes = [
            1,
            SMALL,
            2,
            SMALL - 1,
            SMALL - 1,
            SMALL - 1,
            SMALL - 1,
            9,
            FULL * 2,
            3,
        ];
        let mut byte = (0..).map(|i: u32| (i % 251) as u8);
        let mut pushed = Vec::new();
        for size in sizes {
            let chunk: Vec<u8> = byte.by_ref().take(size).collect();
            pushed.extend_from_slice(&chunk);
            queue.push(chunk.into());
        }
        let popped: Vec<u8> = std::iter::from_fn(|| queue.pop()).flatten().collect();
        assert_eq!(popped, pushed);
    }

    #[test]
    fn many_chunks_are_popped_at_once() {
        let mut queue = ByteQueue::default();
        for byte in 1..=3 {
            queue.push(vec![byte; SMALL].into());
        }
        queue.copy(b"tail");
        let popped = queue.pop_many(2 * SMALL).unwrap();
        assert_eq!((popped.len(), popped.chunk()), (2 * SMALL, &[1; SMALL][..]));
        assert_eq!(queue.pop_many(1).unwrap().chunk(), [3; SMALL]);
        assert_eq!(queue.pop_many(100).unwrap().chunk(), b"tail");
        assert!(queue.pop_many(100).is_none());
    }

    #[test]
    fn copied_bytes_are_returned_in_large_chunks() {
        let mut queue = ByteQueue::default();
        let bytes: Vec<u8> = (0..3 * LARGE + 5).map(|i| (i % 251) as u8).collect();
        for piece in bytes.chunks(LARGE - 7) {
            queue.copy(piece);
        }
        let popped: Vec<Bytes> = std::iter::from_fn(|| queue.pop()).collect();
        let lengths: Vec<usize> = popped.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [LARGE, LARGE, LARGE, 5]);
        assert_eq!(popped.concat(), bytes);
    }

    #[test]
    fn small_chunks_do_not_keep_their_blocks() {
        let mut queue = ByteQueue::default();
        for _ in 0..10 * FULL {
            // A byte of a block that would otherwise live as long as the byte.
            queue.push(Bytes::from(vec![1; SMALL * 2]).slice(..1));
        }
        let capacity: usize = queue.chunks.iter().map(Bytes::len).sum();
        assert_eq!(capacity + queue.tail.len(), 10 * FULL);
        assert!(queue.chunks.len() <= 10);
    }
}
