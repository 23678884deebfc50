//! The account of bytes that wait for an application.

/// Takes account of the bytes that a stream has received, and that wait because the application
/// does not read them.
pub trait HeldBytes {
    /// More bytes wait.
    fn add(&self, bytes: usize);

    /// Bytes that waited are passed on.
    fn remove(&self, bytes: usize);
}
