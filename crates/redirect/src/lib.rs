//! Redirection of a pod's traffic to the proxy: the plan (pure data), the captures that render it, read-back and diff.

#![forbid(unsafe_code)]

mod plan;

pub use plan::{
    CaptureKind, ExistingConnections, ISTIO_PORTS, Mark, PROBE_SOURCE_V4, PROBE_SOURCE_V6, PROXY_MARK, Plan, Ports,
    TABLE,
};
