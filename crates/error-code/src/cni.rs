//! Codes of the CNI plugin.

codes! {}
