//! What the agent is to do.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use handoff::FromAgent;
use redirect::Plan;
use zds::Request;

use crate::event::Event;
use crate::input::Exceptions;
use crate::life::Generation;
use crate::refusal::Refusal;

/// One thing to do. The agent performs the effects of a step in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Decide whether the pod belongs to the mesh, and answer with
    /// [`Input::Decided`](crate::Input::Decided).
    Decide,
    /// Work in the pod's network namespace.
    Kernel(Generation, Work),
    /// Connect to the pod's listeners from within the pod; all of them, or one at random.
    Probe {
        /// Of the answer.
        generation: Generation,
        /// The pod's plan.
        plan: Plan,
        /// The addresses of the plan, followed by all others of the namespace.
        addresses: Vec<IpAddr>,
        /// The uid by which its proxy answers.
        uid: String,
        /// Whether to probe every listener.
        all: bool,
    },
    /// Announce the pod to all proxies, also to those that connect later.
    Offer {
        /// Of the answers.
        generation: Generation,
        /// The request.
        request: Request,
        /// Whether the pod waits for the answer, and so overtakes other pods.
        urgent: bool,
    },
    /// Remove the pod from all proxies, unless a newer life has announced the same uid.
    Withdraw {
        /// The pod's uid.
        uid: String,
    },
    /// Pass [`Input::Superseded`](crate::Input::Superseded) to every other life with the same
    /// attachment or this uid.
    Supersede {
        /// The uid, if it is known.
        uid: Option<String>,
        /// Whether proxies are offered this one next.
        is_offered: bool,
    },
    /// Write all records; answer with [`Answer::Saved`](crate::Answer::Saved) if a generation is
    /// given.
    Persist(Option<Generation>),
    /// Write all records within a second, unless another write does. No ADD waits for it, nor
    /// behind it.
    PersistSoon,
    /// Send a message to the plugin.
    Answer(FromAgent),
    /// Close the plugin's connection.
    Hangup,
    /// Report changes of the pod's rules with [`Input::Changed`](crate::Input::Changed).
    Watch,
    /// Stop reporting changes.
    Unwatch,
    /// Log, count and publish an event.
    Emit(Event),
}

/// Work in a pod's network namespace. It may block, and is answered once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Remove what an interrupted join left in a pod outside the mesh.
    ClearLeftovers,
    /// Check that the namespace is the pod's, and adapt the plan to redirection of istio-cni.
    Prepare {
        /// The plan, or why there is none, which is reported if the namespace is the pod's.
        plan: Result<Plan, Refusal>,
    },
    /// Read back the rules that the plugin installed, and compare them.
    ReadBack {
        /// The plan.
        plan: Plan,
    },
    /// Capture a running pod.
    Join {
        /// The plan.
        plan: Plan,
    },
    /// Change the rules of a member to another plan.
    Repair {
        /// The plan.
        plan: Plan,
        /// The exceptions in the pod's record; `None` if it has only their number.
        exceptions: Option<Exceptions>,
    },
    /// Compare the rules with the plan, repair them, and check the proxy's listeners.
    Verify {
        /// The plan.
        plan: Plan,
        /// The exceptions in the pod's record; `None` if it has only their number.
        exceptions: Option<Exceptions>,
    },
    /// Remove the exceptions of connections that have closed.
    ReleaseExceptions {
        /// The plan.
        plan: Plan,
        /// The exceptions in the pod's record; `None` if it has only their number.
        exceptions: Option<Exceptions>,
    },
    /// Stop capturing; count the captured connections that are open.
    Leave {
        /// The plan.
        plan: Plan,
        /// The exceptions in the pod's record; `None` if it has only their number.
        exceptions: Option<Exceptions>,
        /// Whether the proxy still serves the pod.
        keep_return_path: bool,
    },
    /// Remove all rules.
    Remove,
}

/// Time since an instant, for events.
pub(crate) fn since(start: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(start)
}
