//! The rows: what is done to a contestant, and what is measured.

use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use netns::NetNs;

use super::arena::{Arena, Contestant};
use super::held::Held;
use super::load::{Direction, Flow, Server, new_connections, round_trips};
use super::processes::{cpu, cpu_since, system_calls};
use super::{Options, memory};
use crate::measure::{median, percentile};
use crate::sandbox::{await_within, until};

/// A measurement, by the key of its metric.
pub(super) type Sample = (&'static str, f64);

/// A row of the contest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The name in `--rows`, with which the keys of its metrics begin.
    pub name: &'static str,
    work: Work,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Bulk data on this many connections.
    Bulk(Destination, usize, Direction),
    /// Round trips of messages of this size on this many connections.
    RoundTrips(Destination, usize, usize),
    /// Round trips beside bulk data to the destination.
    Beside(Destination),
    /// This many new connections at a time.
    Connections(usize),
    /// New connections before and while many are open.
    Held,
    SystemCalls,
    Memory,
}

/// Where connections of the client lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    /// A pod of the other node.
    Node,
    /// A pod of the client's node.
    SameNode,
    /// A pod outside the mesh.
    Outside,
}

const fn row(name: &'static str, work: Work) -> Row {
    Row { name, work }
}

impl Row {
    /// All rows.
    pub const ALL: [Self; 18] = [
        // Before the contestants have worked.
        row("memory", Work::Memory),
        row("up1", Work::Bulk(Destination::Node, 1, Direction::Up)),
        row("up8", Work::Bulk(Destination::Node, 8, Direction::Up)),
        row("up64", Work::Bulk(Destination::Node, 64, Direction::Up)),
        row("down1", Work::Bulk(Destination::Node, 1, Direction::Down)),
        row("down8", Work::Bulk(Destination::Node, 8, Direction::Down)),
        row("down64", Work::Bulk(Destination::Node, 64, Direction::Down)),
        row("rr1", Work::RoundTrips(Destination::Node, 1, 1)),
        row("rr64", Work::RoundTrips(Destination::Node, 64, 1024)),
        row("beside", Work::Beside(Destination::Node)),
        row("beside-pass", Work::Beside(Destination::Outside)),
        row("crr1", Work::Connections(1)),
        row("crr32", Work::Connections(32)),
        row(
            "same-up",
            Work::Bulk(Destination::SameNode, 1, Direction::Up),
        ),
        row("same-rr", Work::RoundTrips(Destination::SameNode, 1, 1)),
        row("pass", Work::Bulk(Destination::Outside, 1, Direction::Up)),
        row("held", Work::Held),
        row("calls", Work::SystemCalls),
    ];

    /// How often it is measured.
    pub(super) fn rounds(&self, options: &Options) -> u32 {
        match self.work {
            Work::SystemCalls | Work::Memory => 1,
            Work::Held => options.rounds.min(3),
            _ => options.rounds,
        }
    }

    /// Measures a contestant; `None` if the row does not apply to it.
    pub(super) fn measure(
        &self,
        arena: &mut Arena,
        index: usize,
        options: &Options,
    ) -> Option<Vec<Sample>> {
        let log = arena.file("strace");
        let contestant = arena.contestant(index);
        let (client, pids) = (&contestant.client, contestant.pids());
        let time = options.time();
        let key = |suffix: &str| super::Metric::of(&format!("{}{suffix}", self.name)).key;
        Some(match self.work {
            Work::Bulk(destination, connections, direction) => {
                let server = destination.of(contestant)?;
                let (rate, cost) = bulk(client, server, connections, direction, &pids, options);
                let mut samples = vec![(key(""), rate)];
                samples.extend(cost.map(|cost| (key(".cpu"), cost)));
                samples
            }
            Work::RoundTrips(destination, connections, size) => {
                let server = destination.of(contestant)?;
                let before = cpu(&pids);
                let times = round_trips(client, server, connections, size, time);
                let used = cpu_since(&pids, before).as_secs_f64() * 1e6 / times.len() as f64;
                let mut samples = distribution(key(".p50"), key(".p99"), times);
                if destination == Destination::Node && !pids.is_empty() {
                    samples.push((key(".cpu"), used));
                }
                samples
            }
            Work::Beside(destination) => {
                let busy = Flow::start(client, destination.of(contestant)?, 4, Direction::Up);
                sleep(time / 4);
                let times = round_trips(client, &contestant.server, 1, 1, time);
                drop(busy);
                await_idle(&pids);
                distribution(key(".p50"), key(".p99"), times)
            }
            Work::Connections(at_once) => {
                await_ports(contestant);
                let (before, begun) = (cpu(&pids), Instant::now());
                let times = new_connections(client, &contestant.server, at_once, time);
                let (count, elapsed) = (times.len() as f64, begun.elapsed());
                let used = cpu_since(&pids, before).as_secs_f64() * 1e6 / count;
                let mut samples = vec![
                    (key(""), count / elapsed.as_secs_f64()),
                    (key(".p99"), percentile(times, 99)),
                ];
                if !pids.is_empty() {
                    samples.push((key(".cpu"), used));
                }
                samples
            }
            Work::Held => {
                let connections = options.held as usize;
                if !contestant.can_hold(connections) {
                    return None;
                }
                await_ports(contestant);
                let new = || median(new_connections(client, &contestant.server, 1, time));
                let before = new();
                let held = Held::open(&options.program(), contestant, connections, 32);
                let after = new();
                drop(held);
                await_idle(&pids);
                vec![(key(".before"), before), (key(".after"), after)]
            }
            Work::SystemCalls => {
                if pids.is_empty() {
                    return None;
                }
                return count_calls(contestant, &log, options);
            }
            Work::Memory => {
                if !contestant.is_mesh() {
                    return None;
                }
                memory::measure(contestant, options)
            }
        })
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|row| row.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|row| row.name).collect();
            format!("no row {name}: expected one of {}", names.join(", "))
        })
    }
}

impl Destination {
    /// The server; `None` if it is not reached through what is measured.
    fn of(self, contestant: &Contestant) -> Option<&Server> {
        match self {
            Self::Node => Some(&contestant.server),
            Self::Outside => Some(&contestant.bystander),
            Self::SameNode if contestant.pids().is_empty() || contestant.is_mesh() => {
                Some(&contestant.neighbour)
            }
            // One process of the floor would be on the way.
            Self::SameNode => None,
        }
    }
}

/// Throughput in Gb/s and, if there are processes on the way, their CPU time in s/GB.
fn bulk(
    client: &NetNs,
    server: &Server,
    connections: usize,
    direction: Direction,
    pids: &[u32],
    options: &Options,
) -> (f64, Option<f64>) {
    let flow = Flow::start(client, server, connections, direction);
    sleep(options.time() / 4);
    let read = || (flow.arrived(), cpu(pids), Instant::now());
    let before = read();
    sleep(options.time());
    let after = read();
    let bytes = (after.0 - before.0) as f64;
    let rate = bytes * 8.0 / (after.2 - before.2).as_secs_f64() / 1e9;
    let used = after.1.saturating_sub(before.1).as_secs_f64() * 1e9 / bytes;
    drop(flow);
    await_idle(pids);
    (rate, (!pids.is_empty()).then_some(used))
}

/// Waits until processes have finished what they still had to do for an earlier load.
fn await_idle(pids: &[u32]) {
    const INTERVAL: Duration = Duration::from_millis(20);
    until("the load has ended", || {
        let before = cpu(pids);
        sleep(INTERVAL);
        (cpu_since(pids, before) < INTERVAL / 10).then_some(())
    });
}

/// Median and 99th percentile.
fn distribution(p50: &'static str, p99: &'static str, times: Vec<f64>) -> Vec<Sample> {
    vec![(p50, median(times.clone())), (p99, percentile(times, 99))]
}

/// System calls of both processes for each operation.
fn count_calls(
    contestant: &Contestant,
    log: &std::path::Path,
    options: &Options,
) -> Option<Vec<Sample>> {
    let (client, server, pids) = (&contestant.client, &contestant.server, contestant.pids());
    // So that a tunnel is open.
    round_trips(client, server, 1, 1, options.time() / 10);
    let mut samples = Vec::new();
    let mut count = |key, work: &dyn Fn() -> f64| {
        let mut units = 0.0;
        let calls = system_calls(&pids, log, || units = work())?;
        samples.push((key, calls as f64 / units));
        Some(())
    };
    count("calls.mib", &|| {
        let flow = Flow::start(client, server, 1, Direction::Up);
        let before = flow.arrived();
        sleep(options.time());
        (flow.arrived() - before) as f64 / f64::from(1 << 20)
    })?;
    count("calls.rr", &|| {
        round_trips(client, server, 1, 1, options.time()).len() as f64
    })?;
    count("calls.rr64", &|| {
        round_trips(client, server, 64, 1024, options.time()).len() as f64
    })?;
    count("calls.crr", &|| {
        new_connections(client, server, 1, options.time()).len() as f64
    })?;
    Some(samples)
}

/// Waits while so many ports of the client or so many entries of its conntrack table are in use
/// that new connections would be slower.
fn await_ports(contestant: &Contestant) {
    const MOST_PORTS: usize = 20_000;
    await_within(120, "the client's ports are free", || {
        let usage = contestant.client.run(Usage::read).unwrap();
        let (entries, room) = usage.conntrack;
        (usage.closed + usage.open < MOST_PORTS && entries < room / 4 * 3).then_some(())
    });
}

/// What connections of a pod use.
#[derive(Debug)]
struct Usage {
    /// Connections in TIME_WAIT.
    closed: usize,
    open: usize,
    /// Entries of the conntrack table, and how many it may have.
    conntrack: (usize, usize),
}

impl Usage {
    /// Reads that of the current network namespace.
    fn read() -> Self {
        let sockets = std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
        // TCP: inuse 1 orphan 0 tw 0 alloc 2 mem 0
        let tcp = sockets
            .lines()
            .find(|line| line.starts_with("TCP:"))
            .unwrap();
        let field = |name: &str| {
            let mut words = tcp.split_whitespace().skip_while(|word| *word != name);
            words.nth(1).unwrap().parse().unwrap()
        };
        let number = |name: &str| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            let text = std::fs::read_to_string(path).ok();
            text.map_or(0, |text| text.trim().parse().unwrap())
        };
        let (count, max) = (number("count"), number("max"));
        Self {
            closed: field("tw"),
            open: field("inuse"),
            conntrack: (count, if max == 0 { usize::MAX } else { max }),
        }
    }
}
