//! Applying, removing and reading back, the same for every capture: what a plan stands for is rendered as data, and
//! written here.
//!
//! Everything acts on the network namespace of the calling thread and blocks. Only the iptables backend runs a program.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use error_code::{ErrorCode, redirect as codes};
use nft::{Batch, ChainName, NftError, Socket, Table};

use crate::iptables_program::Variant;
use crate::observed::{Observed, Rendered};
use crate::plan::{CaptureKind, ExistingConnections, Plan, TABLE};
use crate::routing::{LocalRoute, PolicyRule, Routing};
use crate::rule::TABLE_NAME;
use crate::sockets::{
    Connection, Listener, captured_connections, cut_open_connections, open_connections, uncaptured_connections,
};
use crate::xtables::{PREFIX, XtablesRules};
use crate::{foreign, nat, routed, running, xtables};

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
    /// An iptables program could not be run, or refused. Likely cause: it is not installed on this node.
    #[error("iptables: {source}")]
    Iptables {
        /// What it said.
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
            Self::Iptables { .. } => &codes::IPTABLES,
            Self::Several(errors) => errors.first().map_or(&codes::ROUTING, |e| e.code()),
        }
    }
}

/// What applying a plan did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Connections that were open and go on uncaptured.
    pub exempted: usize,
    /// Connections that were open and have been cut.
    pub cut: usize,
}

/// What removing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Whether anything of ours was there.
    pub anything: bool,
}

/// Installs a plan. What is there already is replaced, the nf_tables half in one transaction; a failure undoes what was
/// done.
///
/// # Errors
/// [`RedirectError`]; then nothing of the plan is left in the namespace.
pub fn apply(plan: &Plan) -> Result<Applied, RedirectError> {
    install_or_undo(plan, Pod::New)
}

/// The same for a pod whose applications run: no connection is lost that is being made meanwhile.
///
/// # Errors
/// [`RedirectError`]; then nothing of the plan is left in the namespace.
pub fn join(plan: &Plan) -> Result<Applied, RedirectError> {
    install_or_undo(plan, Pod::Running)
}

/// Puts a plan that was applied back in force. What is open now was captured, so that nothing gets an exception, and
/// nothing is cut. A failure leaves what could be repaired.
///
/// # Errors
/// [`RedirectError`].
pub fn repair(plan: &Plan) -> Result<(), RedirectError> {
    install(plan, Pod::Enrolled).map(drop)
}

/// What is known of a pod when a plan is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pod {
    New,
    Running,
    Enrolled,
}

fn install_or_undo(plan: &Plan, pod: Pod) -> Result<Applied, RedirectError> {
    install(plan, pod).inspect_err(|_| {
        // The first error is the one to report; what cannot be removed now is removed by DEL or by the agent.
        let _ = remove();
    })
}

fn install(plan: &Plan, pod: Pod) -> Result<Applied, RedirectError> {
    if plan.addresses.is_empty() {
        return Err(RedirectError::NoAddress);
    }
    let routing = routing()?;
    let observed = rules(&routing)?;
    // Somebody applied a plan here before: what is open now was captured then, or is exempt already.
    let first = pod != Pod::Enrolled && !applied_before(plan, &observed)?;
    let joins = first && pod == Pod::Running && plan.capture == CaptureKind::Routed && !plan.adopt;
    if joins {
        running::pause(plan, &observed)?;
    }
    let exceptions: Vec<PolicyRule> = match (plan.capture, plan.existing_connections) {
        (CaptureKind::Routed, ExistingConnections::Keep) if first => {
            // A pod that had left and joins again may have some that are captured still.
            let open = uncaptured_connections(&plan.addresses, plan.mark);
            let open = open.map_err(failed("cannot list the open connections"))?;
            open.into_iter().map(PolicyRule::exception_for).collect()
        }
        _ => Vec::new(),
    };
    let kept = observed.iter().filter(|r| plan.capture == CaptureKind::Routed && r.is_connection_exception());
    let kept: Vec<PolicyRule> = exceptions.iter().chain(kept).cloned().collect();
    let rendered = Rendered::of(plan, &kept);

    // From the guard on, nothing leaves unmarked; so the rules of netfilter come first and the capturing rule last.
    if !joins {
        write_netfilter(plan, &rendered)?;
    }
    routing.raise_loopback().map_err(failed("cannot bring the loopback interface up"))?;
    for route in &rendered.routes {
        add_route(&routing, *route).map_err(failed(&format!("cannot add {route}")))?;
    }
    for rule in exceptions.iter().chain(&rendered.rules) {
        if !observed.contains(rule) {
            routing.add_rule(rule).map_err(failed(&format!("cannot add {rule}")))?;
        }
    }
    if joins {
        write_netfilter(plan, &rendered)?;
    }
    for stale in observed.iter().filter(|r| !rendered.rules.contains(r) && !kept.contains(r)) {
        delete(&routing, stale)?;
    }
    let cut = match plan.existing_connections {
        ExistingConnections::Reset if first => {
            cut_open_connections(&plan.addresses).map_err(failed("cannot cut the open connections"))?
        }
        _ => 0,
    };
    Ok(Applied { exempted: exceptions.len(), cut })
}

fn write_netfilter(plan: &Plan, rendered: &Rendered) -> Result<(), RedirectError> {
    match &rendered.table {
        Some(table) if plan.adopt => replace_table_and_istios(table)?,
        Some(table) => replace_table(table)?,
        None => remove_table()?,
    }
    replace_xtables(plan.capture, rendered)?;
    if plan.adopt {
        remove_istios(rendered.table.is_some())?;
    }
    Ok(())
}

/// Removes whatever any capture of ours installed. What is gone already is fine.
///
/// # Errors
/// [`RedirectError`] with everything that could not be removed; the rest is gone.
pub fn remove() -> Result<Removed, RedirectError> {
    let mut errors = Vec::new();
    let mut anything = false;
    match Socket::open().and_then(|s| nft::dump_table(&s, TABLE_NAME)) {
        Ok(None) => {}
        Ok(Some(_)) => {
            anything = true;
            errors.extend(remove_table().err());
        }
        Err(e) => errors.push(e.into()),
    }
    let chains = chain_names();
    for variant in Variant::ALL {
        match variant.remove(PREFIX, &chains) {
            Ok(some) => anything |= some,
            Err(source) => errors.push(RedirectError::Iptables { source }),
        }
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

/// Takes a pod out of the mesh while its applications run: nothing new is captured, and what is captured goes on until it
/// closes. Returns how many such connections there are; call it again until there are none. Then nothing of ours is left,
/// unless it `lingers`: what the proxy makes for connections that it had accepted, and for tunnels that are open, needs its
/// way back.
///
/// # Errors
/// [`RedirectError`].
pub fn leave(plan: &Plan, lingers: bool) -> Result<usize, RedirectError> {
    if plan.capture == CaptureKind::Routed {
        return running::leave(plan, lingers);
    }
    let captured = captured_here(plan)?;
    if captured.is_empty() && !lingers {
        remove()?;
        return Ok(0);
    }
    add(&routing()?, &nat::policy_rules(plan))?;
    if plan.capture == CaptureKind::Nat {
        let table = nat::leaving_table(plan);
        if table_now()?.as_ref() != Some(&table) {
            replace_table(&table)?;
        }
    } else {
        let (mut tables, present) = (xtables::leaving_tables(plan), xtables_among(&chain_names())?);
        // One that is not there has been left already.
        tables.retain(|t| present.iter().any(|p| p.v6 == t.v6 && p.table == t.table && p != t));
        if !tables.is_empty() {
            write_xtables(plan.capture, &tables, &present)?;
        }
    }
    Ok(captured.len())
}

/// How many connections of the pod with a proxy are open, whoever captured them.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn captured(plan: &Plan) -> Result<usize, RedirectError> {
    captured_here(plan).map(|c| c.len())
}

pub(crate) fn captured_here(plan: &Plan) -> Result<Vec<Connection>, RedirectError> {
    captured_connections(&plan.addresses, plan.mark).map_err(failed("cannot list the captured connections"))
}

/// Reads back what is ours in the namespace, of whichever capture.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn read_back() -> Result<Observed, RedirectError> {
    let socket = Socket::open()?;
    let routing = routing()?;
    let chains = nft::chain_names(&socket)?;
    Ok(Observed {
        table: nft::dump_table(&socket, TABLE_NAME)?,
        foreign: foreign::among(&chains)?,
        xtables: xtables_among(&chains)?,
        rules: rules(&routing)?,
        routes: routing.local_routes(TABLE).map_err(failed("cannot list the routes"))?,
    })
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
    if !closed.is_empty()
        && let Some(table) = Rendered::of(plan, &remaining).table
    {
        replace_table(&table)?;
    }
    for rule in &closed {
        delete(&routing, rule)?;
    }
    Ok(remaining.len())
}

/// Whatever listens for TCP in the namespace.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn listeners() -> Result<Vec<Listener>, RedirectError> {
    crate::sockets::listeners().map_err(failed("cannot list the listening sockets"))
}

/// Whether a plan was applied here before, of which something may be missing now. Of a pod that had not quite left, what
/// it has opened since then is not captured.
fn applied_before(plan: &Plan, rules: &[PolicyRule]) -> Result<bool, RedirectError> {
    let table = table_now()?;
    Ok(match plan.capture {
        CaptureKind::Routed => {
            rules.iter().any(PolicyRule::captures)
                || table.is_some_and(|t| t.chains.iter().any(|c| c.name == routed::GUARD))
        }
        _ => table.is_some() || rules.iter().any(|r| r.priority == routed::PREF_CAPTURE),
    })
}

/// Our table as it is, if there is one.
pub(crate) fn table_now() -> Result<Option<Table>, RedirectError> {
    Ok(nft::dump_table(&Socket::open()?, TABLE_NAME)?)
}

/// Writes the table in one transaction. Only when there is one already is it deleted in the same transaction: a
/// deletion makes the socket's close wait for the kernel, which a starting pod should not.
pub(crate) fn replace_table(table: &Table) -> Result<(), RedirectError> {
    let socket = Socket::open()?;
    let mut batch = Batch::new(TABLE_NAME);
    fill(&mut batch, table);
    match batch.commit(&socket) {
        Err(e) if e.errno() == Some(libc::EEXIST) => {}
        done => return Ok(done?),
    }
    let mut batch = Batch::new(TABLE_NAME);
    batch.delete_table();
    fill(&mut batch, table);
    batch.commit(&socket)?;
    close_elsewhere(socket);
    Ok(())
}

/// The same, and in the same transaction Istio's nf_tables rules go.
fn replace_table_and_istios(table: &Table) -> Result<(), RedirectError> {
    let socket = Socket::open()?;
    let mut batch = Batch::new(TABLE_NAME);
    foreign::remove_with(&mut batch, &socket)?;
    if nft::dump_table(&socket, TABLE_NAME)?.is_some() {
        batch.delete_table();
    }
    fill(&mut batch, table);
    batch.commit(&socket)?;
    close_elsewhere(socket);
    Ok(())
}

/// What could not go in the transaction: Istio's rules by iptables-legacy, or by nf_tables where we have no table there.
fn remove_istios(in_transaction: bool) -> Result<(), RedirectError> {
    if !in_transaction && let Ok(socket) = Socket::open() {
        let mut batch = Batch::new(TABLE_NAME);
        foreign::remove_with(&mut batch, &socket)?;
        batch.commit(&socket)?;
        close_elsewhere(socket);
    }
    foreign::remove_legacy()
}

fn fill(batch: &mut Batch, table: &Table) {
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
}

/// Deletes the table; one that is gone already is fine, and so is a kernel without nf_tables.
fn remove_table() -> Result<(), RedirectError> {
    let Ok(socket) = Socket::open() else { return Ok(()) };
    let mut batch = Batch::new(TABLE_NAME);
    batch.delete_table();
    match batch.commit(&socket) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
        done => {
            close_elsewhere(socket);
            Ok(done?)
        }
    }
}

/// Makes the iptables rules those of the plan, and takes out those of another iptables.
fn replace_xtables(kind: CaptureKind, rendered: &Rendered) -> Result<(), RedirectError> {
    let chains = chain_names();
    for other in Variant::ALL.into_iter().filter(|v| Variant::of(kind) != Some(*v)) {
        other.remove(PREFIX, &chains).map_err(|source| RedirectError::Iptables { source })?;
    }
    if rendered.xtables.is_empty() {
        return Ok(());
    }
    write_xtables(kind, &rendered.xtables, &xtables_among(&chains)?)
}

fn write_xtables(kind: CaptureKind, tables: &[XtablesRules], present: &[XtablesRules]) -> Result<(), RedirectError> {
    let Some(variant) = Variant::of(kind) else { return Ok(()) };
    variant.restore(tables, present).map_err(|source| RedirectError::Iptables { source })
}

/// The chains of everybody in nf_tables; none on a kernel without.
fn chain_names() -> Vec<ChainName> {
    Socket::open().and_then(|s| nft::chain_names(&s)).unwrap_or_default()
}

fn xtables_among(chains: &[ChainName]) -> Result<Vec<XtablesRules>, RedirectError> {
    let mut out = Vec::new();
    for variant in Variant::ALL {
        let listed = variant.list(PREFIX, chains).map_err(|source| RedirectError::Iptables { source })?;
        out.extend(listed);
    }
    out.sort();
    Ok(out)
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

pub(crate) fn routing() -> Result<Routing, RedirectError> {
    Routing::open().map_err(failed("policy routing cannot be reached over netlink"))
}

pub(crate) fn rules(routing: &Routing) -> Result<Vec<PolicyRule>, RedirectError> {
    routing.rules().map_err(failed("cannot list the ip rules"))
}

/// Adds rules; those that are there already are fine.
pub(crate) fn add(routing: &Routing, rules: &[PolicyRule]) -> Result<(), RedirectError> {
    rules.iter().try_for_each(|rule| routing.add_rule(rule).map_err(failed(&format!("cannot add {rule}"))))
}

pub(crate) fn delete(routing: &Routing, rule: &PolicyRule) -> Result<(), RedirectError> {
    routing.delete_rule(rule).map_err(failed(&format!("cannot delete {rule}")))
}

fn connections(own: &[IpAddr]) -> Result<Vec<Connection>, RedirectError> {
    open_connections(own).map_err(failed("cannot list the open connections"))
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> RedirectError {
    let what = what.to_owned();
    move |source| RedirectError::Routing { what, source }
}
