//! Redirection of a pod's traffic to the proxy: the plan (pure data), the captures that render it, read-back and diff.

#![forbid(unsafe_code)]

mod annotation;
mod capture;
mod foreign;
pub mod host;
mod iptables_program;
mod nat;
mod observed;
mod plan;
mod routed;
mod routing;
mod rule;
mod running;
mod sockets;
mod xtables;

pub use annotation::{ANNOTATIONS, AnnotationError, LONGEST_ANNOTATION};
pub use capture::{
    Applied, RedirectError, Removed, apply, captured, join, leave, listeners, read_back, release_closed_exceptions,
    remove, repair,
};
pub use foreign::{Foreign, foreign};
pub use observed::{Difference, How, Observed, diff};
pub use plan::{
    CaptureKind, Exclusions, ExistingConnections, ISTIO_PORTS, InterfaceName, InterfaceNameError, Mark,
    PROBE_SOURCE_V4, PROBE_SOURCE_V6, PROXY_MARK, Plan, Ports, RETURN_MARK, TABLE,
};
pub use routing::{LocalRoute, PolicyRule, Transport};
pub use rule::TABLE_NAME;
pub use sockets::{Connection, Listener};
pub use xtables::XtablesRules;
