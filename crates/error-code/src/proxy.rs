//! Codes of the proxy.

codes! {}
