//! Codes of redirection.

codes! {}
