//! Codes of the sandbox.

codes! {}
