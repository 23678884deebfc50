//! Redirection of a pod's traffic to the proxy: the plan (pure data), the capture backends that
//! render it, read-back and diff.

#![forbid(unsafe_code)]

mod addresses;
mod annotation;
mod bypass;
mod capture;
mod difference;
mod driver;
mod error;
mod examples;
mod foreign;
pub mod host;
mod iptables_program;
mod legacy_tables;
mod links;
mod local_route;
mod nat;
mod netfilter;
mod netlink;
mod node_side;
mod plan;
mod policy_rule;
mod raw;
mod read_back;
mod remove;
mod return_path;
mod routed;
mod routing;
mod rule;
mod rule_priorities;
mod sockets;
mod state;
mod surroundings;
mod target;
mod xtables;

pub use addresses::missing_addresses;
pub use annotation::{
    ANNOTATIONS, AnnotationError, EXCLUDE_OUTBOUND_CIDRS, EXCLUDING, MAX_ANNOTATION_CHARS,
};
pub use bypass::Bypass;
pub use capture::{
    apply, count_captured, cut_uncaptured, diff, diff_with, exempted_connections, join, leave,
    release_closed_exceptions, repair,
};
pub use difference::{Difference, DifferenceKind};
pub use driver::{ApplyOutcome, Exceptions};
pub use error::RedirectError;
pub use examples::{ExampleTable, example_tables};
pub use foreign::{ForeignRedirection, find_foreign_redirection};
pub use local_route::{LocalRoute, OtherRoute};
pub use node_side::PodInterface;
pub use plan::{
    CaptureKind, Exclusions, ExistingConnections, ISTIO_PORTS, InterfaceName, InterfaceNameError,
    Mark, Network, PROBE_DESTINATIONS, PROBE_PORT, PROBE_SOURCE_V4, PROBE_SOURCE_V6, PROXY_MARK,
    Plan, Ports, ProxyUser, ProxyUserError, RETURN_MARK, TABLE,
};
pub use policy_rule::{Action, PolicyRule, Transport};
pub use read_back::{Examination, examine, find_bypasses, read_back};
pub use remove::{RemoveOutcome, remove};
pub use rule::TABLE_NAME;
pub use rule_priorities::RulePriorities;
pub use sockets::{Listener, TcpConnection, listeners};
pub use state::ObservedState;
pub use surroundings::Surroundings;
pub use xtables::XtablesRules;
