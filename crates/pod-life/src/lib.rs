//! The life of a pod in the node agent: one value, [`Life`], and one function, [`step()`], that
//! decides what happens next. No I/O, no clock, no channel.
//!
//! The agent passes each event that concerns a pod as an [`Input`], and performs the returned
//! [`Effect`]s in order. Whatever takes time is performed elsewhere and answered with
//! [`Input::Answered`], which carries the [`Generation`] of its request. An answer that the life no
//! longer waits for is ignored, so that no late answer can revive a pod that has left. At
//! [`Life::deadline`] the agent passes [`Input::Tick`]. A life in [`Phase::Gone`] is dropped.
//!
//! ```text
//!   ADD ──▶ Waiting ──▶ Preparing ──▶ Installing ──▶ ReadingBack ─┐
//!              │            │ (via Add)                           ▼
//!              │ refused    │              ┌────────────── AwaitingProxy
//!              ▼            │ (via Running)│                  │      │ (via Add)
//!            Gone           │              ▼                  │      │
//!              ▲            │          Capturing ─────────▶ Saving ◀─┘
//!              │            │                                 │
//!   found ─▶ Outside ◀──────┴── any step refused ──┐          ▼
//!              ▲ │  └─────▶ Preparing (Running)    └─────── Member ◀─┐
//!              │ │ cleared                                    │      │ rejoined
//!              │ ▼                                            ▼      │
//!            Outside ◀──────── connections closed ───────── Leaving ─┘
//!
//!   DEL in any phase ──▶ Removing ──▶ Gone          replaced or released ──▶ Gone
//! ```
//!
//! ADD and running pods share the steps; they differ in who applies the plan, and when:
//!
//! | | via Add | via Running |
//! |---|---|---|
//! | applies the plan | the plugin, before a proxy is asked | the agent, after one has accepted |
//! | without a proxy | waits until the plugin's deadline | refused, tried again after a second |
//! | refused | rules removed, the pod does not start | stays outside, tried again after a second |
//!
//! | phase | input | next phase | effects |
//! |---|---|---|---|
//! | new | presented, skip | Outside | answer Skip; replace earlier lives; persist |
//! | new | presented, unknown or busy | Gone | answer Failed |
//! | new | presented, blocked by a removal | Waiting | |
//! | new | presented, enrol | Preparing | check the namespace |
//! | new | found running | Outside | decide |
//! | new | restored from a record | Member, Leaving or Outside | announce; verify; decide |
//! | Waiting | unblocked | Preparing, Outside or Gone | as presented |
//! | Outside | decided, enrol | Preparing | check the namespace |
//! | Outside | decided, skip | Outside | clear leftovers of a join; forget a late start |
//! | Outside | located | Outside | decide |
//! | Preparing | prepared, via Add | Installing | answer Enrol with the plan |
//! | Preparing | prepared, via Running | AwaitingProxy | replace earlier lives; offer |
//! | Installing | the plugin installed it | ReadingBack | read back and compare |
//! | ReadingBack | as planned | AwaitingProxy | replace earlier lives; offer to proxies; persist |
//! | AwaitingProxy | accepted, via Add | Saving, or Member if saved | persist, if not begun |
//! | AwaitingProxy | saved | AwaitingProxy | |
//! | AwaitingProxy | accepted, via Running | Capturing | join |
//! | AwaitingProxy | all proxies rejected it | refused | |
//! | Capturing | joined | Saving | persist |
//! | Saving | saved | Member | answer Ready, persist soon (Add); late join; watch; verify; decide |
//! | any of these | refused or late, via Add | Removing | answer Failed; withdraw; remove |
//! | any of these | refused or late, via Running | Outside | withdraw; remove after a capture |
//! | Member | decided, skip | Leaving | unwatch; leave |
//! | Member | decided, another plan | Member | repair to that plan; persist |
//! | Member | changed, due, requested | Member | verify and repair; probe |
//! | Member | verified or not | Member | event if the state changed |
//! | Member | work over its budget | Member | unverified, until it is answered |
//! | Member | exempted connections closed | Member | persist |
//! | Member | located after a restart | Member | announce; watch; verify |
//! | Leaving | connections open, or lingering | Leaving | persist; leave again after a second |
//! | Leaving | none open | Outside | withdraw; persist |
//! | Leaving | decided, enrol | Member | join; persist |
//! | any | deleted | Removing, then Gone | answer Failed (via Add); withdraw; remove; persist |
//! | any | released: finished, or not in the API server | Gone | withdraw; persist; rules stay |
//! | any | replaced by a newer sandbox | Gone | withdraw, unless the uid is the same |
//! | Removing | removed | Gone or Outside | close the plugin's connection |
//!
//! Kernel work runs one at a time per pod: while [`Life::busy`], further work waits.

#![forbid(unsafe_code)]

mod checks;
mod effect;
mod event;
mod input;
mod joining;
mod late_start;
mod leaving;
mod life;
mod member;
mod pods;
mod record;
mod refusal;
mod schedule;
mod step;
mod verification;

pub use checks::Checks;
pub use effect::{Effect, Work};
pub use event::Event;
pub use input::{
    Answer, Conflict, Exceptions, FromNode, Input, Intent, Leftovers, Now, RulesCheck, Verdict,
};
pub use joining::{Joining, Saving, Stage, Via};
pub use late_start::LateStart;
pub use leaving::Leaving;
pub use life::{Busy, Generation, Life, Outside, Phase, Removing, Sandbox, WORK_BUDGET};
pub use member::Member;
pub use pods::{LifeId, Pods, Standing};
pub use record::{Discarded, Membership, OutsideRecord, Record, Records};
pub use refusal::Refusal;
pub use step::step;
pub use verification::{Finding, Repair, Verification};

#[cfg(test)]
mod tests;
