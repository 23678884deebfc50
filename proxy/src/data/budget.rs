//! What one pod may take from the others of its node: new connections per second, open connections,
//! and received bytes that wait because applications do not read them.
//!
//! New connections beyond the limit wait in the queues of the pod's sockets. A pod with too many
//! open connections gets no more, nor does the pod with most of them when the descriptors of the
//! process run out. If too many bytes wait, the connection that has
//! delivered nothing for the longest time is closed: one of the pod, or if all pods together hold
//! too much, one of the pod that holds most.

mod descriptors;
mod rate;
mod report;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hbone::HeldBytes;
use parking_lot::Mutex;
use telemetry::Metrics;
use tokio::sync::SetOnce;

use self::descriptors::Descriptors;
use self::rate::Rate;
use self::report::Actions;
pub(crate) use self::report::{Budget, ExhaustedBudget};
use super::error::ConnectionError;
use super::turns::Turns;

/// The limits. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections that are accepted in a pod each second, and at once after a rest; 0 for any
    /// number.
    pub(crate) pod_new_connections: u32,
    /// Open connections of a pod.
    pub(crate) pod_connections: usize,
    /// Bytes that wait for the applications at the other ends of a pod's tunnel streams.
    pub(crate) pod_held: usize,
    /// The same for all pods together.
    pub(crate) node_held: usize,
}

/// The budget of a node.
pub(crate) struct NodeBudget {
    limits: Limits,
    /// Number of data threads.
    workers: usize,
    metrics: Arc<Metrics>,
    held: AtomicUsize,
    connections: AtomicUsize,
    descriptors: Descriptors,
    pods: Mutex<Vec<Weak<PodBudget>>>,
}

/// The budget of a pod, which all its connections share.
pub(crate) struct PodBudget {
    node: Arc<NodeBudget>,
    /// Turns of its connections on the workers.
    pub(super) turns: Turns,
    new_connections: Option<Rate>,
    connections: AtomicUsize,
    waiting: Mutex<Waiting>,
    actions: Mutex<Actions>,
}

/// The streams of a pod in which bytes wait.
#[derive(Default)]
struct Waiting {
    held: usize,
    next_turn: u64,
    /// By the turn in which they last delivered something.
    streams: BTreeMap<u64, WaitingStream>,
}

struct WaitingStream {
    bytes: usize,
    /// Set when the stream must end, to the budget that requires it.
    evicted: Arc<SetOnce<Budget>>,
}

impl NodeBudget {
    pub(crate) fn new(limits: Limits, workers: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            limits,
            workers,
            metrics,
            held: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            descriptors: Descriptors::of_process(),
            pods: Mutex::default(),
        })
    }

    /// The budget of another pod.
    pub(crate) fn pod(self: &Arc<Self>) -> Arc<PodBudget> {
        let pod = Arc::new(PodBudget {
            node: self.clone(),
            turns: Turns::new(self.workers),
            new_connections: Rate::new(self.limits.pod_new_connections, Instant::now()),
            connections: AtomicUsize::new(0),
            waiting: Mutex::default(),
            actions: Mutex::default(),
        });
        let mut pods = self.pods.lock();
        pods.retain(|pod| pod.strong_count() > 0);
        pods.push(Arc::downgrade(&pod));
        pod
    }

    /// Closes connections of the pods that hold most, until all hold no more than they may.
    fn enforce(&self) {
        while self.held.load(Ordering::Relaxed) > self.limits.node_held {
            let pods: Vec<_> = self.pods.lock().iter().filter_map(Weak::upgrade).collect();
            let most = pods.iter().max_by_key(|pod| pod.held());
            let evicted = most.is_some_and(|pod| {
                let mut waiting = pod.waiting.lock();
                pod.evict(&mut waiting, Budget::NodeUnread)
            });
            if !evicted {
                return; // what is held is being released
            }
        }
    }
}

/// The pause after a pod has accepted a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) duration: Duration,
    /// Whether it is the first one for a while.
    pub(super) is_first: bool,
}

impl PodBudget {
    /// Counts a connection that was accepted in the pod. Returns how long it waits, and with it
    /// those behind it, or `None` if it need not.
    pub(super) fn accept(&self, now: Instant) -> Option<Pause> {
        let duration = self.new_connections.as_ref()?.take(now)?;
        self.node.metrics.delayed_over_budget.inc();
        let is_first = self.actions.lock().record(Budget::NewConnections, now);
        Some(Pause { duration, is_first })
    }

    /// Counts a connection as open until the result is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Result<OpenConnection, ConnectionError> {
        let NodeBudget {
            limits,
            connections,
            descriptors,
            ..
        } = &*self.node;
        let open = OpenConnection(self.clone());
        let of_node = connections.fetch_add(1, Ordering::Relaxed);
        let refused = if self.connections.fetch_add(1, Ordering::Relaxed) >= limits.pod_connections
        {
            Some((Budget::PodConnections, limits.pod_connections))
        } else if descriptors.are_short(of_node) && self.has_most_connections() {
            Some((Budget::Descriptors, descriptors.limit))
        } else {
            None
        };
        let Some((budget, limit)) = refused else {
            return Ok(open);
        };
        self.node.metrics.refused_over_budget.inc();
        self.actions.lock().record(budget, Instant::now());
        Err(ConnectionError::TooManyConnections { budget, limit })
    }

    /// Whether no other pod has more open connections.
    fn has_most_connections(&self) -> bool {
        let pods = self.node.pods.lock();
        let mut all = pods.iter().filter_map(Weak::upgrade);
        all.all(|pod| pod.connections() <= self.connections())
    }

    /// The account of a stream of the pod.
    pub(super) fn account(self: &Arc<Self>) -> Rc<Account> {
        Rc::new(Account {
            budget: self.clone(),
            turn: Cell::new(None),
            evicted: Arc::default(),
        })
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The number of bytes that wait.
    pub(crate) fn held(&self) -> usize {
        self.waiting.lock().held
    }

    /// The budgets that the pod has exhausted, or had until a few minutes ago.
    pub(crate) fn exhausted(&self) -> Vec<ExhaustedBudget> {
        let limits = &self.node.limits;
        let node_held = self.node.held.load(Ordering::Relaxed);
        let new_connections = usize::try_from(limits.pod_new_connections).unwrap_or(usize::MAX);
        let (connections, held) = (self.connections(), self.held());
        let used = [
            (Budget::NewConnections, None, new_connections),
            (
                Budget::PodConnections,
                Some(connections),
                limits.pod_connections,
            ),
            (
                Budget::Descriptors,
                self.node.descriptors.used(),
                self.node.descriptors.limit,
            ),
            (Budget::PodUnread, Some(held), limits.pod_held),
            (Budget::NodeUnread, Some(node_held), limits.node_held),
        ];
        let (actions, now) = (self.actions.lock(), Instant::now());
        let exhausted =
            |(budget, used, limit)| ExhaustedBudget::new(budget, used, limit, &actions, now);
        used.into_iter().filter_map(exhausted).collect()
    }

    /// Ends, because of a budget, the stream that has delivered nothing for the longest time; false
    /// if there is none.
    fn evict(&self, waiting: &mut Waiting, budget: Budget) -> bool {
        let Some((_, stream)) = waiting.streams.pop_first() else {
            return false;
        };
        waiting.held -= stream.bytes;
        self.node.held.fetch_sub(stream.bytes, Ordering::Relaxed);
        self.node.metrics.closed_over_budget.inc();
        self.actions.lock().record(budget, Instant::now());
        let _ = stream.evicted.set(budget); // a stream is evicted once, by removing it
        true
    }
}

/// Counts a connection as open for as long as it lives.
pub(super) struct OpenConnection(Arc<PodBudget>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.node.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The account of the bytes that wait in one stream.
pub(super) struct Account {
    budget: Arc<PodBudget>,
    /// Its turn among those in which bytes wait, unless it was closed.
    turn: Cell<Option<u64>>,
    evicted: Arc<SetOnce<Budget>>,
}

impl Account {
    /// Completes when the stream must end, with the reason.
    pub(super) async fn until_over_budget(&self) -> ConnectionError {
        let budget = *self.evicted.wait().await;
        let limits = &self.budget.node.limits;
        let limit = match budget {
            Budget::NodeUnread => limits.node_held,
            _ => limits.pod_held,
        };
        ConnectionError::TooManyUnread { budget, limit }
    }

    /// Removes what waits in the stream from the account, and returns it.
    fn take(&self, waiting: &mut Waiting) -> Option<WaitingStream> {
        let stream = waiting.streams.remove(&self.turn.get()?)?;
        waiting.held -= stream.bytes;
        Some(stream)
    }

    /// Adds to the account what waits in the stream, which has just delivered something.
    fn put(&self, waiting: &mut Waiting, stream: WaitingStream) {
        let turn = waiting.next_turn;
        waiting.next_turn += 1;
        waiting.held += stream.bytes;
        waiting.streams.insert(turn, stream);
        self.turn.set(Some(turn));
    }
}

impl HeldBytes for Account {
    fn add(&self, bytes: usize) {
        let PodBudget { node, waiting, .. } = &*self.budget;
        let mut waiting = waiting.lock();
        match self.turn.get() {
            Some(turn) => match waiting.streams.get_mut(&turn) {
                Some(stream) => {
                    stream.bytes += bytes;
                    waiting.held += bytes;
                }
                None => return, // it is being closed
            },
            None => {
                let evicted = self.evicted.clone();
                self.put(&mut waiting, WaitingStream { bytes, evicted });
            }
        }
        let held = node.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        while waiting.held > node.limits.pod_held
            && self.budget.evict(&mut waiting, Budget::PodUnread)
        {}
        drop(waiting);
        if held > node.limits.node_held {
            node.enforce();
        }
    }

    fn remove(&self, bytes: usize) {
        let mut waiting = self.budget.waiting.lock();
        if let Some(mut stream) = self.take(&mut waiting) {
            self.budget.node.held.fetch_sub(bytes, Ordering::Relaxed);
            stream.bytes -= bytes;
            if stream.bytes == 0 {
                self.turn.set(None);
            } else {
                self.put(&mut waiting, stream);
            }
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let stream = self.take(&mut self.budget.waiting.lock());
        if let Some(stream) = stream {
            let held = &self.budget.node.held;
            held.fetch_sub(stream.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn node(pod_held: usize, node_held: usize) -> Arc<NodeBudget> {
        let limits = Limits {
            pod_new_connections: 3,
            pod_connections: 2,
            pod_held,
            node_held,
        };
        NodeBudget::new(
            limits,
            1,
            Arc::new(Metrics::new(Default::default(), Default::default())),
        )
    }

    fn must_end(account: &Account) -> bool {
        let ends = pin!(account.until_over_budget());
        matches!(
            ends.poll(&mut Context::from_waker(Waker::noop())),
            Poll::Ready(_)
        )
    }

    #[test]
    fn a_pod_opens_as_many_connections_as_it_may() {
        let node = node(1, 1);
        let (pod, other) = (node.pod(), node.pod());
        let first = pod.open().unwrap();
        let _second = pod.open().unwrap();
        assert!(pod.open().is_err());
        assert!(other.open().is_ok());
        drop(first);
        assert!(pod.open().is_ok());
    }

    #[test]
    fn only_the_pod_with_most_connections_gets_no_more_when_descriptors_are_short() {
        let budget = Arc::into_inner(node(1, 1)).unwrap();
        let node = Arc::new(NodeBudget {
            descriptors: Descriptors::none(2),
            limits: Limits {
                pod_connections: 100,
                ..budget.limits
            },
            ..budget
        });
        let (greedy, modest) = (node.pod(), node.pod());
        let of_greedy = [(); 3].map(|()| greedy.open());
        assert_eq!(of_greedy.each_ref().map(Result::is_ok), [true, true, false]);
        let of_modest = modest.open();
        assert!(of_modest.is_ok(), "the other pod has more");
        assert!(modest.open().is_err(), "it would have as many");
        drop(of_greedy);
        assert!(greedy.open().is_ok());
        assert_eq!(greedy.exhausted().len(), 1);
    }

    #[test]
    fn new_connections_beyond_the_limit_pause_the_pod_and_no_other() {
        let node = node(1, 1);
        let (pod, other) = (node.pod(), node.pod());
        let now = Instant::now() + Duration::from_secs(60);
        let pauses = [(); 5].map(|()| pod.accept(now));
        assert_eq!(pauses[..3], [None; 3]);
        let is_first = pauses.map(|pause| pause.map(|pause| pause.is_first));
        assert_eq!(is_first[3..], [Some(true), Some(false)]);
        assert_eq!(other.accept(now), None);
        assert_eq!(pod.exhausted().len(), 1);
        assert!(other.exhausted().is_empty());
        assert_eq!(node.metrics.delayed_over_budget.get(), 2);
    }

    #[test]
    fn the_stream_that_has_not_delivered_for_longest_ends_first() {
        let node = node(100, 1000);
        let pod = node.pod();
        let streams = [(); 4].map(|()| pod.account());
        for stream in &streams {
            stream.add(25);
        }
        streams[0].remove(5); // delivers
        streams[3].add(6);
        assert_eq!(
            streams.each_ref().map(|s| must_end(s)),
            [false, true, false, false]
        );
        assert_eq!(pod.held(), 76);
        streams[1].add(1000); // is being closed, and counts no more
        assert_eq!(pod.held(), 76);
        drop(streams);
        assert_eq!((pod.held(), node.held.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn the_pod_that_holds_most_makes_room_for_the_others() {
        let node = node(100, 150);
        let (greedy, modest) = (node.pod(), node.pod());
        let greedy = [(); 3].map(|()| greedy.account());
        let modest = modest.account();
        for stream in &greedy {
            stream.add(30);
        }
        modest.add(50);
        assert_eq!(greedy.each_ref().map(|s| must_end(s)), [false; 3]);
        modest.add(11);
        assert_eq!(greedy.each_ref().map(|s| must_end(s)), [true, false, false]);
        assert!(!must_end(&modest));
        // A single stream that is over the limit by itself ends as well.
        modest.add(1000);
        assert!(must_end(&modest));
    }
}
