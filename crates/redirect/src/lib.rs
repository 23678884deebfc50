//! Redirection of a pod's traffic to the proxy: the plan (pure data), the captures that render it, read-back and diff.

#![forbid(unsafe_code)]

mod capture;
mod observed;
mod plan;
mod routed;
mod routing;
mod sockets;

pub use capture::{
    Applied, RedirectError, Removed, apply, listening_ports, read_back, release_closed_exceptions, remove,
};
pub use observed::{Difference, How, Observed, diff};
pub use plan::{
    CaptureKind, ExistingConnections, ISTIO_PORTS, Mark, PROBE_SOURCE_V4, PROBE_SOURCE_V6, PROXY_MARK, Plan, Ports,
    TABLE,
};
pub use routed::TABLE_NAME;
pub use routing::{LocalRoute, PolicyRule};
pub use sockets::Connection;
