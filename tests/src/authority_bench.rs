//! How proxies request certificates after an outage of the authority and after a root rotation, in
//! virtual time: their schedules are real, the authority is simulated.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, SystemTime};

use identity::Schedule;
use mesh::Identity;

/// Response time of the authority.
const LATENCY: Duration = Duration::from_millis(50);
/// Deadline of a request during an outage.
const DEADLINE: Duration = Duration::from_secs(10);
/// Validity of certificates.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// Measures both.
pub fn run() {
    const HOUR: Duration = Duration::from_secs(3600);
    // All certificates become due during the outage: they are renewed after 9.6 to 12 hours.
    let mut cluster = Cluster::started(1, 250);
    cluster.run_until(9 * HOUR);
    cluster.outage_ends = cluster.start + 13 * HOUR;
    cluster.run_until(13 * HOUR);
    cluster.begin_phase();
    cluster.run_until(14 * HOUR);
    cluster.report("250 identities with valid certificates after an outage of four hours");

    let mut cluster = Cluster::new(1, 250);
    cluster.outage_ends = cluster.start + HOUR;
    cluster.run_until(HOUR);
    cluster.begin_phase();
    cluster.run_until(2 * HOUR);
    cluster.report("250 identities without certificates after an outage of an hour");

    let mut cluster = Cluster::started(1000, 30);
    cluster.root = 1;
    cluster.begin_phase();
    cluster.run_until(13 * HOUR);
    cluster.report("1,000 nodes with 30 identities each after a root rotation");
}

/// The nodes of a cluster and what happens next.
struct Cluster {
    nodes: Vec<Node>,
    /// Node numbers by the time at which something happens there, with the answer that arrives.
    events: BinaryHeap<Reverse<(SystemTime, usize, Option<Answer>)>>,
    start: SystemTime,
    now: SystemTime,
    outage_ends: SystemTime,
    /// The root of the authority.
    root: u32,
    /// When each request of this phase was sent, and when each certificate was issued.
    requests: Vec<SystemTime>,
    issued: Vec<SystemTime>,
    phase: SystemTime,
}

struct Node {
    schedule: Schedule,
    root: u32,
    /// When the schedule is checked next; earlier plans are ignored.
    wake: Option<SystemTime>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    identity: Identity,
    /// The root of the certificate; `None` if there was no answer in time.
    root: Option<u32>,
}

impl Cluster {
    /// Nodes that started within a minute, as after the upgrade of a cluster, an hour ago.
    fn started(nodes: usize, identities: usize) -> Self {
        let mut cluster = Self::new(nodes, identities);
        cluster.run_until(Duration::from_secs(3600));
        cluster
    }

    /// Nodes that start within a minute.
    fn new(nodes: usize, identities: usize) -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
        let mut cluster = Self {
            nodes: Vec::new(),
            events: BinaryHeap::new(),
            start,
            now: start,
            outage_ends: start,
            root: 0,
            requests: Vec::new(),
            issued: Vec::new(),
            phase: start,
        };
        for number in 0..nodes {
            let at = start + Duration::from_secs(60).mul_f64(rand::random());
            let mut schedule = Schedule::default();
            for i in 0..identities {
                let identity = format!("spiffe://cluster.local/ns/default/sa/account-{i}");
                schedule.add_pod(&identity.parse().unwrap(), at);
            }
            cluster.nodes.push(Node {
                schedule,
                root: 0,
                wake: Some(at),
            });
            cluster.events.push(Reverse((at, number, None)));
        }
        cluster
    }

    /// Counts from now on.
    fn begin_phase(&mut self) {
        self.phase = self.now;
        self.requests.clear();
        self.issued.clear();
    }

    fn run_until(&mut self, since_start: Duration) {
        let end = self.start + since_start;
        while let Some(Reverse((at, number, answer))) = self.events.pop() {
            if at > end {
                self.events.push(Reverse((at, number, answer)));
                break;
            }
            self.now = at;
            self.step(number, answer);
        }
        self.now = end;
    }

    fn step(&mut self, number: usize, answer: Option<Answer>) {
        let now = self.now;
        let node = &mut self.nodes[number];
        let schedule = &mut node.schedule;
        match answer {
            Some(Answer {
                identity,
                root: Some(root),
            }) => {
                self.issued.push(now);
                if std::mem::replace(&mut node.root, root) != root {
                    schedule.renew_all(now, rand::random);
                }
                let (renewal, expiry) = (now + VALIDITY / 2, now + VALIDITY);
                schedule.record_issued(&identity, now, renewal, expiry, rand::random());
            }
            Some(Answer {
                identity,
                root: None,
            }) => {
                schedule.record_failure(&identity, now, rand::random());
            }
            None if node.wake != Some(now) => return,
            None => node.wake = None,
        }
        while let Some(identity) = schedule.next_due(now) {
            self.requests.push(now);
            let is_up = now >= self.outage_ends;
            let root = is_up.then_some(self.root);
            let after = if is_up { LATENCY } else { DEADLINE };
            let answer = Some(Answer { identity, root });
            self.events.push(Reverse((now + after, number, answer)));
        }
        let wake = schedule.wake_at().map(|at| at.max(now));
        if let Some(at) = wake.filter(|_| wake != node.wake) {
            self.events.push(Reverse((at, number, None)));
        }
        node.wake = wake;
    }

    fn report(&self, what: &str) {
        let since = |at: &SystemTime| {
            at.duration_since(self.phase)
                .unwrap_or_default()
                .as_secs_f64()
        };
        let mut per_second = std::collections::BTreeMap::new();
        for at in &self.requests {
            *per_second.entry(since(at) as u64).or_insert(0) += 1;
        }
        let first = self.issued.first().map_or(0.0, since);
        let last = self.issued.last().map_or(0.0, since);
        let busiest = per_second.values().max().copied().unwrap_or(0);
        println!(
            "authority  {what}: first certificate after {first:.1} s, all {} after {last:.1} s; \
             {} requests, at most {busiest} in a second",
            self.issued.len(),
            self.requests.len(),
        );
    }
}
