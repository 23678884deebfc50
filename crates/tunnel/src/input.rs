//! Received bytes while they are handled.

use std::ops::Range;

use tls_record::{MAX_FRAGMENT, MAX_RECORD};

/// Minimum size of a read buffer, in bytes: the rest of a record that is open, and a whole one.
pub const MIN_BUFFER: usize = MAX_FRAGMENT + MAX_RECORD;

/// A read buffer while a tunnel receives from it. It begins with the bytes that the tunnel held,
/// and ends with room for more.
#[derive(Debug)]
#[must_use = "bytes that are not handled must be held by the tunnel"]
pub struct Input<'a> {
    pub(crate) bytes: &'a mut [u8],
    /// Plain text that HTTP/2 has not handled.
    pub(crate) opened: Range<usize>,
    /// Bytes that are not decrypted, behind it.
    pub(crate) sealed: Range<usize>,
}

impl Input<'_> {
    /// The room for bytes from the connection. It may be empty: then what the buffer has must be
    /// received before more is read.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[self.sealed.end..]
    }

    /// Notes that the first `length` bytes of the [`space`](Self::space) were read.
    ///
    /// # Panics
    /// Panics if the space is smaller.
    pub fn fill(&mut self, length: usize) {
        let end = self.sealed.end + length;
        assert!(end <= self.bytes.len(), "more was read than there is room");
        self.sealed.end = end;
    }

    /// The data of the last [`Event::Data`](crate::Event::Data).
    pub fn data(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }
}
