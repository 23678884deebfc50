//! Bytes that lie in several chunks.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Bytes on their way from one side to the other. They may lie in several chunks, which are written
/// with one system call.
#[derive(Debug, Default)]
pub struct Chunks {
    /// Empty only if there are no others.
    first: Bytes,
    others: VecDeque<Bytes>,
}

impl Chunks {
    /// Appends a chunk.
    pub fn push(&mut self, chunk: Bytes) {
        if self.first.is_empty() {
            self.first = chunk;
        } else if !chunk.is_empty() {
            self.others.push_back(chunk);
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.first.len() + self.others.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Removes the first bytes of the first chunk, at most `most`.
    pub fn split_first(&mut self, most: usize) -> Bytes {
        let length = self.first.len().min(most);
        let split = self.first.split_to(length);
        self.skip_empty();
        split
    }

    /// Appends chunks.
    pub(crate) fn append(&mut self, chunks: Self) {
        self.push(chunks.first);
        chunks.others.into_iter().for_each(|chunk| self.push(chunk));
    }

    /// Removes the last byte.
    pub(crate) fn split_last(&mut self) -> Option<Bytes> {
        let last = self.others.back_mut().unwrap_or(&mut self.first);
        let at = last.len().checked_sub(1)?;
        let byte = Bytes::copy_from_slice(&last.split_off(at));
        if self.others.back().is_some_and(Bytes::is_empty) {
            self.others.pop_back();
        }
        Some(byte)
    }

    /// Replaces the chunks by a copy, so that they do not keep the blocks in memory of which they
    /// are parts.
    pub fn detach(&mut self) {
        let mut copy = BytesMut::with_capacity(self.len());
        copy.extend_from_slice(&self.first);
        self.others
            .drain(..)
            .for_each(|o| copy.extend_from_slice(&o));
        self.first = copy.freeze();
    }

    /// The memory of the last chunk, if all bytes are written and nothing else uses it.
    pub(crate) fn into_memory(self) -> Option<BytesMut> {
        let is_written = self.is_empty();
        self.first.try_into_mut().ok().filter(|_| is_written)
    }

    fn skip_empty(&mut self) {
        while self.first.is_empty()
            && let Some(next) = self.others.pop_front()
        {
            self.first = next;
        }
    }
}

impl From<Bytes> for Chunks {
    fn from(first: Bytes) -> Self {
        Self {
            first,
            others: VecDeque::new(),
        }
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn chunks_vectored<'a>(&'a self, to: &mut [IoSlice<'a>]) -> usize {
        let chunks = std::iter::once(&self.first).chain(&self.others);
        let chunks = chunks.filter(|chunk| !chunk.is_empty());
        let mut filled = 0;
        for (slice, chunk) in to.iter_mut().zip(chunks) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let now = bytes.min(self.first.len());
            assert!(now > 0, "there are not as many bytes");
            self.first.advance(now);
            self.skip_empty();
            bytes -= now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static [u8]]) -> Chunks {
        let mut chunks = Chunks::default();
        for part in parts {
            chunks.push(Bytes::from_static(part));
        }
        chunks
    }

    fn slices(chunks: &Chunks) -> Vec<Vec<u8>> {
        let mut slices = [IoSlice::new(&[]); 9];
        let filled = chunks.chunks_vectored(&mut slices);
        slices[..filled].iter().map(|s| s.to_vec()).collect()
    }

    #[test]
    fn bytes_stay_in_order_however_they_are_removed() {
        let mut chunks = chunks(&[b"abc", b"", b"de", b"f"]);
        assert_eq!((chunks.len(), chunks.is_empty()), (6, false));
        assert_eq!(slices(&chunks), [&b"abc"[..], b"de", b"f"]);
        assert_eq!(chunks.split_first(2), &b"ab"[..]);
        chunks.advance(2);
        assert_eq!(chunks.chunk(), b"e");
        chunks.detach();
        assert_eq!(chunks.chunk(), b"ef");
        chunks.advance(2);
        assert!(chunks.is_empty() && slices(&chunks).is_empty());
    }

    #[test]
    fn memory_is_reused_only_if_nothing_else_uses_it() {
        let bytes = Bytes::from(vec![7; 100]);
        let other = bytes.clone();
        let mut written = Chunks::from(bytes);
        written.advance(100);
        assert!(written.into_memory().is_none());
        assert!(Chunks::from(other.clone()).into_memory().is_none());
        let mut written = Chunks::from(other);
        written.advance(100);
        let mut memory = written.into_memory().unwrap();
        memory.reserve(100);
        assert!(memory.is_empty() && memory.capacity() >= 100);
    }
}
