//! What happens to a pod.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use redirect::Exceptions;
use redirect::Plan;

use crate::life::Generation;
use crate::refusal::Refusal;
use crate::verification::Finding;

/// What a step may know besides the life and its input.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The time.
    pub at: Instant,
    /// When the agent started; verifications align to it.
    pub started: Instant,
    /// Number of members on this node.
    pub members: usize,
    /// Number of connected proxies.
    pub proxies: usize,
}

/// Whether a pod belongs to the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the mesh.
    Enrol(Box<Intent>),
    /// It does not, for this reason.
    Skip(String),
    /// Too little is known about it.
    Unknown(String),
}

/// How a pod is to be a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The uid by which proxies identify it.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// Why it belongs to the mesh.
    pub reason: String,
    /// Its plan, or why it has none.
    pub plan: Result<Plan, Refusal>,
    /// Why nothing that the agent observes proves that its traffic is captured, such as a runtime
    /// that runs it in a virtual machine.
    pub unprovable: Option<String>,
}

/// Another life that prevents an ADD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Another ADD of the pod, container or namespace is in progress.
    Adding,
    /// Rules are being changed in the same sandbox, which ends without the plugin.
    Changing,
}

/// An event that concerns a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // moved once, into a step
pub enum Input {
    /// A plugin presented the pod in an ADD.
    Presented {
        /// Whether it belongs to the mesh.
        verdict: Verdict,
        /// Another life that prevents the ADD.
        conflict: Option<Conflict>,
        /// Whether another life has the same attachment or namespace.
        repeated: bool,
        /// When the plugin must be answered.
        deadline: Instant,
    },
    /// The lives that a waiting ADD conflicted with are done.
    Unblocked,
    /// The agent found the running pod, or restored it from its record.
    Begun,
    /// Whether the pod belongs to the mesh, whenever that may have changed; also the answer to
    /// [`Effect::Decide`](crate::Effect::Decide).
    Decided(Verdict),
    /// The pod's namespace was found at this path.
    Located {
        /// The path.
        path: PathBuf,
        /// Its inode.
        inode: u64,
    },
    /// The plugin has installed the plan.
    Installed,
    /// The plugin disconnected, or sent an invalid message.
    PluginFailed(Refusal),
    /// A performer's answer.
    Answered(Generation, Answer),
    /// The kernel reports changed rules.
    Changed,
    /// A proxy has accepted all pods, or none is connected any more.
    ProxiesChanged,
    /// A verification was requested.
    VerifyRequested,
    /// The runtime deleted the sandbox, or no longer has it.
    Deleted,
    /// The pod has finished, or the API server does not have it; its rules stay.
    Released(String),
    /// A newer sandbox replaces this one.
    Superseded {
        /// The uid that proxies are offered instead.
        uid: Option<String>,
    },
    /// [`Life::deadline`](crate::Life::deadline) has passed.
    Tick,
}

/// The answer to an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Work::ClearLeftovers`](crate::Work::ClearLeftovers).
    Cleared(Result<Leftovers, Refusal>),
    /// To [`Work::Prepare`](crate::Work::Prepare).
    Prepared {
        /// The adapted plan.
        plan: Result<Plan, Refusal>,
        /// Whether the namespace is no longer at its path, and can be searched for.
        lost: bool,
    },
    /// To [`Work::ReadBack`](crate::Work::ReadBack), with the exempted connections.
    ReadBack(Result<Exceptions, Refusal>),
    /// To [`Work::Join`](crate::Work::Join).
    Joined(Result<Exceptions, Refusal>),
    /// To [`Work::Repair`](crate::Work::Repair).
    PlanApplied(Result<(), Refusal>),
    /// To [`Work::Verify`](crate::Work::Verify).
    RulesChecked(RulesCheck),
    /// To [`Effect::Probe`](crate::Effect::Probe).
    Probed(Result<FromNode, Finding>),
    /// To [`Work::ReleaseExceptions`](crate::Work::ReleaseExceptions).
    ExceptionsReleased(Result<Exceptions, Refusal>),
    /// To [`Work::Leave`](crate::Work::Leave), with the number of open captured connections.
    Left(Result<usize, Refusal>),
    /// To [`Work::Remove`](crate::Work::Remove).
    Removed(Result<(), Refusal>),
    /// To [`Effect::Offer`](crate::Effect::Offer), from each proxy.
    Proxy(Result<(), String>),
    /// To [`Effect::Persist`](crate::Effect::Persist).
    Saved(Result<(), String>),
}

/// Whether a verification also probed the pod from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromNode {
    /// Probes of every family reached the proxy.
    Probed,
    /// The node's route to an address of the pod does not lead through the pod's interface, or the
    /// plan does not capture what the node sends.
    NotProbed,
}

/// What was left of an interrupted join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// Nothing.
    None,
    /// Rules, which were removed.
    Removed,
    /// Unknown: the namespace was not found.
    Unplaced,
}

/// The result of comparing a pod's rules and listeners with its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesCheck {
    /// What was repaired, who had changed it, and the time that the repair took.
    pub repaired: Option<(String, String, Duration)>,
    /// If everything is as planned now, the addresses of the plan, followed by all others of the
    /// namespace.
    pub result: Result<Vec<IpAddr>, Finding>,
}
