//! Turns of connections on a thread.

/// What one direction has copied since other connections had their turn. A socket never waits by
/// itself while it is ready. tokio's budget does not suffice: a task that has spent it is run again
/// before new events are read, up to 61 times.
#[derive(Default)]
pub(crate) struct Turn {
    chunks: usize,
    bytes: usize,
}

impl Turn {
    /// Limits of what is copied in a turn: well below a millisecond of work.
    pub(crate) const CHUNKS: usize = 32;
    pub(crate) const BYTES: usize = 512 * 1024;

    /// Counts a chunk; true, and a new turn, if enough was copied.
    pub(crate) fn is_over(&mut self, bytes: usize) -> bool {
        self.chunks += 1;
        self.bytes += bytes;
        let is_over = self.chunks >= Self::CHUNKS || self.bytes >= Self::BYTES;
        if is_over {
            *self = Self::default();
        }
        is_over
    }
}
