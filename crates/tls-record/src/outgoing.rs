//! Sealed bytes on their way out.

use std::fmt;

/// Sealed bytes that are not sent yet, in order.
///
/// Its memory stays initialised while it is reused, so that sealing writes each byte only once.
#[derive(Default)]
pub struct Outgoing {
    storage: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    /// Bytes that are to be sent next.
    pub fn unsent(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// Removes bytes from the front, which were sent.
    ///
    /// # Panics
    /// Panics if `length` is more than [`unsent`](Self::unsent) has.
    pub fn sent(&mut self, length: usize) {
        assert!(length <= self.end - self.start, "more sent than was there");
        self.start += length;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Returns the memory that is not in use to the allocator.
    pub fn release(&mut self) {
        self.storage = self.unsent().to_vec();
        (self.start, self.end) = (0, self.storage.len());
    }

    /// Adds `length` bytes with any content at the end.
    pub(crate) fn extend(&mut self, length: usize) -> &mut [u8] {
        if self.end + length > self.storage.len() && self.start > 0 {
            self.storage.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let begin = self.end;
        self.end += length;
        if self.end > self.storage.len() {
            self.storage.resize(self.end, 0);
        }
        &mut self.storage[begin..self.end]
    }

    pub(crate) fn into_unsent(mut self) -> Vec<u8> {
        self.storage.truncate(self.end);
        self.storage.drain(..self.start);
        self.storage
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(storage: Vec<u8>) -> Self {
        let end = storage.len();
        Self {
            storage,
            start: 0,
            end,
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} bytes)", self.end - self.start)
    }
}
