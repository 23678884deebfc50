//! Recording of a thread's connections.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashTable;
use mesh::Service;
use mesh::baggage::Baggage;

use crate::event::labels;
use crate::facts::{ConnectionFacts, Direction, Side};
use crate::metrics::Metrics;
use crate::traffic_series::{Counters, ThreadNumber};

/// Maximum number of known pairs; all are forgotten when there are more.
const MAX_KNOWN: usize = 4096;

/// Records the connections of one thread. It remembers the counters of the pairs of workloads that
/// have communicated, so that their labels are not made and looked up for each connection.
#[derive(Debug)]
pub struct Recorder {
    pub(crate) metrics: Arc<Metrics>,
    thread: ThreadNumber,
    hasher: RandomState,
    known: RefCell<HashTable<Known>>,
}

/// What labels are made of, and the counters with these labels.
#[derive(Debug)]
struct Known {
    hash: u64,
    direction: Direction,
    source: Side,
    destination: Side,
    service: Option<Arc<Service>>,
    counters: Arc<Counters>,
}

impl Recorder {
    /// Creates the recorder of a thread.
    pub fn new(metrics: Arc<Metrics>) -> Rc<Self> {
        let thread = metrics.next_thread();
        Rc::new(Self {
            metrics,
            thread,
            hasher: RandomState::new(),
            known: RefCell::default(),
        })
    }

    /// Counts an opened connection. Returns the counters for the rest of its life.
    pub(crate) fn open(&self, facts: &ConnectionFacts) -> Arc<Counters> {
        let hash = self.hash(facts);
        let mut known = self.known.borrow_mut();
        if let Ok(found) = known.find_entry(hash, |known| known.describes(facts)) {
            if found.get().counters.open() {
                return found.get().counters.clone();
            }
            found.remove();
        }
        let (counters, is_exact) = self.metrics.traffic.open(labels(facts), self.thread);
        if is_exact {
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            let new = Known {
                hash,
                direction: facts.direction,
                source: facts.source.clone(),
                destination: facts.destination.clone(),
                service: facts.service.clone(),
                counters: counters.clone(),
            };
            known.insert_unique(hash, new, |known| known.hash);
        }
        counters
    }

    /// Forgets the pairs whose series have ended.
    pub fn forget_ended(&self) {
        let mut known = self.known.borrow_mut();
        known.retain(|known| !known.counters.has_ended());
        known.shrink_to_fit(|known| known.hash);
    }

    /// Hashes the fields in which most pairs differ.
    fn hash(&self, facts: &ConnectionFacts) -> u64 {
        let side = |side: &Side| {
            let account = side.identity.as_ref().map(|i| &i.service_account);
            let Baggage {
                workload_name,
                namespace,
                ..
            } = &side.attributes;
            self.hasher.hash_one((workload_name, namespace, account))
        };
        let service = facts.service.as_ref().map(|s| s.hostname.as_str());
        let sides = (side(&facts.source), side(&facts.destination));
        let is_inbound = facts.direction == Direction::Inbound;
        self.hasher.hash_one((is_inbound, sides, service))
    }
}

impl Known {
    /// Whether a connection has these labels.
    fn describes(&self, facts: &ConnectionFacts) -> bool {
        let same = |a: &Side, b: &Side| a.attributes == b.attributes && a.identity == b.identity;
        let same_service = match (&self.service, &facts.service) {
            (Some(a), Some(b)) => {
                Arc::ptr_eq(a, b)
                    || (&a.hostname, &a.namespace, &a.name) == (&b.hostname, &b.namespace, &b.name)
            }
            (a, b) => a.is_none() && b.is_none(),
        };
        self.direction == facts.direction
            && same_service
            && same(&self.source, &facts.source)
            && same(&self.destination, &facts.destination)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mesh::OrigDst;

    use super::*;
    use crate::log_buffer::LogBuffer;
    use crate::log_format::DroppedLines;

    fn facts(workload: &str, account: Option<&str>) -> ConnectionFacts {
        let client = std::net::SocketAddr::from(([10, 0, 0, 1], 4711));
        let to = OrigDst(([10, 0, 0, 2], 80).into());
        let attributes = Baggage {
            workload_name: workload.into(),
            ..Baggage::default()
        };
        let identity = account.map(|account| format!("spiffe://td/ns/n/sa/{account}"));
        ConnectionFacts {
            direction: Direction::Outbound,
            client: client.into(),
            source: Side {
                attributes,
                workload: None,
                identity: identity.map(|id| id.parse().unwrap()),
            },
            requested_addr: to,
            destination_addr: to.into(),
            authority: None,
            destination: Side::default(),
            service: None,
            delayed: None,
        }
    }

    #[test]
    fn connections_with_the_same_labels_share_counters_and_no_others_do() {
        let dropped = DroppedLines(LogBuffer::default());
        let metrics = Arc::new(Metrics::new(dropped, Default::default()));
        let recorder = Recorder::new(metrics.clone());
        let inbound = ConnectionFacts {
            direction: Direction::Inbound,
            ..facts("a", None)
        };
        let pairs = [
            facts("a", None),
            facts("b", None),
            facts("a", Some("x")),
            facts("a", Some("y")),
            inbound,
        ];
        let first = pairs.clone().map(|facts| recorder.open(&facts));
        let again = pairs.clone().map(|facts| recorder.open(&facts));
        for (i, a) in first.iter().enumerate() {
            for (j, b) in again.iter().enumerate() {
                assert_eq!(Arc::ptr_eq(a, b), i == j, "{i} {j}");
            }
        }
        // Another thread counts by itself, into the same series.
        let other = Recorder::new(metrics.clone());
        assert!(!Arc::ptr_eq(&other.open(&pairs[0]), &first[0]));
        let text = metrics.encode();
        let opened: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("istio_tcp_connections_opened_total{"))
            .collect();
        assert_eq!(opened.len(), pairs.len());
        assert_eq!(opened.iter().filter(|l| l.ends_with("} 3")).count(), 1);

        // A pair that comes back after its series ended is counted again.
        let now = Instant::now();
        for (first, again) in first.iter().zip(&again) {
            first.close("-", false, now);
            again.close("-", false, now);
        }
        metrics
            .traffic
            .remove_ended(now + Duration::from_secs(3600));
        let known = || recorder.known.borrow().len();
        assert_eq!(known(), pairs.len());
        recorder.forget_ended();
        assert_eq!(known(), 1, "one is open on another thread");
        let back = recorder.open(&pairs[1]);
        assert!(!Arc::ptr_eq(&back, &first[1]));
        assert!(Arc::ptr_eq(&back, &recorder.open(&pairs[1])));
        recorder.forget_ended();
        assert_eq!(known(), 2, "the series of this one have not ended");
    }
}
