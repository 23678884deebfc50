//! Codes of the node agent.

codes! {}
