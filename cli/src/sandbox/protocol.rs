//! The protocol between `up` and the keeper, over the keeper's standard input and output.

/// Written by `up` to let the sandbox run after `up` exits. Without it, the keeper removes
/// everything.
pub(super) const COMMIT: u8 = b'c';
/// The last line that the keeper prints for `up` on success.
pub(super) const DONE: &str = "=";
/// Prefix of the line with the reason why the keeper failed.
pub(super) const FAILED: &str = "!";
