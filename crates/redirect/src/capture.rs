//! Applying, removing and reading back, behind one trait so that other captures come in beside `routed`.
//!
//! Everything acts on the network namespace of the calling thread, blocks, and runs no program.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use error_code::{ErrorCode, redirect as codes};
use nft::{Batch, NftError, Socket};

use crate::observed::Observed;
use crate::plan::{CaptureKind, ExistingConnections, Plan, TABLE};
use crate::routed;
use crate::routing::{LocalRoute, PolicyRule, Routing};
use crate::sockets::{Connection, open_connections};

/// How long to wait for a fresh IPv6 address: one probe a second by default (dad_transmits), and a random start.
const DUPLICATE_ADDRESS_DETECTION: Duration = Duration::from_millis(2500);

/// Why a namespace could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The plan names no address of the pod, so there is nothing to capture. Likely cause: an empty prevResult.
    #[error("the plan has no address of the pod")]
    NoAddress,
    /// nf_tables refused. Likely cause: a kernel without nf_tables or its tproxy module.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Policy routing refused. Likely cause: a kernel without policy routing for that family.
    #[error("{what}: {source}")]
    Routing {
        /// What was asked for.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Several things went wrong while removing; everything else was removed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<RedirectError>),
}

impl RedirectError {
    /// The code under which users find this in the documentation.
    pub fn code(&self) -> &'static ErrorCode {
        match self {
            Self::NoAddress => &codes::NO_ADDRESS,
            Self::Nft(_) => &codes::NF_TABLES,
            Self::Routing { .. } => &codes::ROUTING,
            Self::Several(errors) => errors.first().map_or(&codes::ROUTING, |e| e.code()),
        }
    }
}

/// What applying a plan did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Connections that were open and go on uncaptured.
    pub exempted: usize,
}

/// What removing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Whether anything of ours was there.
    pub anything: bool,
}

/// One way of bringing a pod's packets to the proxy.
trait Capture {
    fn apply(&self, plan: &Plan) -> Result<Applied, RedirectError>;
    fn remove(&self) -> Result<Removed, RedirectError>;
    fn read_back(&self) -> Result<Observed, RedirectError>;
}

fn capture(kind: CaptureKind) -> impl Capture {
    match kind {
        CaptureKind::Routed => Routed,
    }
}

/// Installs a plan. What is there already is replaced in one transaction; a failure undoes what was done.
///
/// # Errors
/// [`RedirectError`]; then nothing of the plan is left in the namespace.
pub fn apply(plan: &Plan) -> Result<Applied, RedirectError> {
    if plan.addresses.is_empty() {
        return Err(RedirectError::NoAddress);
    }
    let capture = capture(plan.capture);
    capture.apply(plan).inspect_err(|_| {
        // The first error is the one to report; what cannot be removed now is removed by DEL or by the agent.
        let _ = capture.remove();
    })
}

/// Removes whatever any capture of ours installed. What is gone already is fine.
///
/// # Errors
/// [`RedirectError`] with everything that could not be removed; the rest is gone.
pub fn remove() -> Result<Removed, RedirectError> {
    Routed.remove()
}

/// Reads back what is ours in the namespace.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn read_back() -> Result<Observed, RedirectError> {
    Routed.read_back()
}

/// Drops the exceptions of connections that have closed; returns how many remain.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn release_closed_exceptions(plan: &Plan) -> Result<usize, RedirectError> {
    let routing = routing()?;
    let open: Vec<PolicyRule> = connections(&[])?.into_iter().map(PolicyRule::exception_for).collect();
    let exceptions = rules(&routing)?.into_iter().filter(PolicyRule::is_connection_exception);
    let (remaining, closed): (Vec<_>, Vec<_>) = exceptions.partition(|r| open.contains(r));
    if !closed.is_empty() {
        replace_table(plan, &remaining)?;
    }
    for rule in &closed {
        delete(&routing, rule)?;
    }
    Ok(remaining.len())
}

/// The TCP ports on which something listens in the namespace.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn listening_ports() -> Result<BTreeSet<u16>, RedirectError> {
    crate::sockets::listening_ports().map_err(failed("cannot list the listening sockets"))
}

struct Routed;

impl Capture for Routed {
    fn apply(&self, plan: &Plan) -> Result<Applied, RedirectError> {
        let routing = routing()?;
        let observed = rules(&routing)?;
        let planned = routed::policy_rules(plan);
        let exempt = match plan.existing_connections {
            // Somebody applied a plan here before: what is open now was captured then, or is exempt already.
            _ if applied_before(&observed)? => Vec::new(),
            ExistingConnections::Keep => connections(&plan.addresses)?,
            ExistingConnections::Reset => Vec::new(),
        };
        let exceptions: Vec<PolicyRule> = exempt.iter().copied().map(PolicyRule::exception_for).collect();
        let kept = observed.iter().filter(|r| r.is_connection_exception());
        let kept: Vec<PolicyRule> = exceptions.iter().chain(kept).cloned().collect();

        // From the guard on, nothing leaves unmarked; so the table comes first and the capturing rule last.
        replace_table(plan, &kept)?;
        routing.raise_loopback().map_err(failed("cannot bring the loopback interface up"))?;
        for route in routed::routes(plan) {
            add_route(&routing, route).map_err(failed(&format!("cannot add {route}")))?;
        }
        for rule in exceptions.iter().chain(&planned) {
            if !observed.contains(rule) {
                routing.add_rule(rule).map_err(failed(&format!("cannot add {rule}")))?;
            }
        }
        for stale in observed.iter().filter(|r| !planned.contains(r) && !r.is_connection_exception()) {
            delete(&routing, stale)?;
        }
        Ok(Applied { exempted: exceptions.len() })
    }

    fn remove(&self) -> Result<Removed, RedirectError> {
        let mut errors = Vec::new();
        let mut anything = false;
        match Socket::open().and_then(|s| nft::dump_table(&s, routed::TABLE_NAME).map(|t| (s, t.is_some()))) {
            Ok((_, false)) => {}
            Ok((socket, true)) => {
                anything = true;
                let mut batch = Batch::new(routed::TABLE_NAME);
                batch.delete_table();
                if let Err(e) = batch.commit(&socket)
                    && e.errno() != Some(libc::ENOENT)
                {
                    errors.push(e.into());
                }
                close_elsewhere(socket);
            }
            Err(e) => errors.push(e.into()),
        }
        match routing() {
            Ok(routing) => {
                // Capturing stops first, so that no packet meets half of the rules for long.
                let mut found = rules(&routing).unwrap_or_default();
                found.reverse();
                for rule in &found {
                    anything = true;
                    errors.extend(delete(&routing, rule).err());
                }
                for route in routing.local_routes(TABLE).unwrap_or_default() {
                    anything = true;
                    let deleted = routing.delete_route(route).map_err(failed(&format!("cannot delete {route}")));
                    errors.extend(deleted.err());
                }
            }
            Err(e) => errors.push(e),
        }
        match errors.len() {
            0 => Ok(Removed { anything }),
            1 => Err(errors.remove(0)),
            _ => Err(RedirectError::Several(errors)),
        }
    }

    fn read_back(&self) -> Result<Observed, RedirectError> {
        let socket = Socket::open()?;
        let routing = routing()?;
        Ok(Observed {
            table: nft::dump_table(&socket, routed::TABLE_NAME)?,
            rules: rules(&routing)?,
            routes: routing.local_routes(TABLE).map_err(failed("cannot list the routes"))?,
        })
    }
}

/// Whether a plan was applied here before, of which something may be missing now.
fn applied_before(rules: &[PolicyRule]) -> Result<bool, RedirectError> {
    let capturing = rules.iter().any(|r| r.priority == routed::PREF_CAPTURE);
    Ok(capturing || nft::dump_table(&Socket::open()?, routed::TABLE_NAME)?.is_some())
}

/// Writes the table in one transaction. Only when there is one already is it deleted in the same transaction: a
/// deletion makes the socket's close wait for the kernel, which a starting pod should not.
fn replace_table(plan: &Plan, exceptions: &[PolicyRule]) -> Result<(), RedirectError> {
    let fill = |batch: &mut Batch| {
        let table = routed::table(plan, exceptions);
        batch.create_table();
        table.sets.iter().for_each(|s| {
            batch.set(s);
        });
        table.chains.iter().for_each(|c| {
            batch.chain(c);
        });
        table.rules.iter().for_each(|r| {
            batch.rule(r);
        });
    };
    let socket = Socket::open()?;
    let mut batch = Batch::new(routed::TABLE_NAME);
    fill(&mut batch);
    match batch.commit(&socket) {
        Err(e) if e.errno() == Some(libc::EEXIST) => {}
        done => return Ok(done?),
    }
    let mut batch = Batch::new(routed::TABLE_NAME);
    batch.delete_table();
    fill(&mut batch);
    batch.commit(&socket)?;
    close_elsewhere(socket);
    Ok(())
}

/// Closes a socket that deleted something without making the caller wait for the kernel's clean-up (about 10 ms).
fn close_elsewhere(socket: Socket) {
    let _ = std::thread::Builder::new().name("nft-close".into()).spawn(move || drop(socket));
}

/// Adds a route. The kernel refuses a source address that is still tentative (EINVAL), which a fresh IPv6 address is until
/// duplicate address detection is done: about a second where it is on, a moment where it is off.
fn add_route(routing: &Routing, route: LocalRoute) -> io::Result<()> {
    let deadline = Instant::now() + DUPLICATE_ADDRESS_DETECTION;
    loop {
        match routing.add_route(route) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && route.source.is_ipv6() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}

fn routing() -> Result<Routing, RedirectError> {
    Routing::open().map_err(failed("policy routing cannot be reached over netlink"))
}

fn rules(routing: &Routing) -> Result<Vec<PolicyRule>, RedirectError> {
    routing.rules().map_err(failed("cannot list the ip rules"))
}

fn delete(routing: &Routing, rule: &PolicyRule) -> Result<(), RedirectError> {
    routing.delete_rule(rule).map_err(failed(&format!("cannot delete {rule}")))
}

fn connections(own: &[IpAddr]) -> Result<Vec<Connection>, RedirectError> {
    open_connections(own).map_err(failed("cannot list the open connections"))
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> RedirectError {
    let what = what.to_owned();
    move |source| RedirectError::Routing { what, source }
}
