//! The error format of the command line.

/// Creates an error with its code, cause and next step.
pub(crate) fn failure(
    code: &error_code::ErrorCode,
    detail: impl std::fmt::Display,
) -> anyhow::Error {
    anyhow::anyhow!(
        "{code}: {detail}\n{} {}\nNext step: {}",
        code.what,
        code.cause,
        code.next_step
    )
}
