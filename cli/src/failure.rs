//! Errors as the command line prints them.

/// An error with its code and next step.
pub(crate) fn failure(code: &error_code::ErrorCode, detail: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{code}: {detail}\n{} {}\nNext step: {}", code.what, code.cause, code.next_step)
}
