//! Which nodes do not answer, as far as the connections of one worker show. Pure decisions: the
//! caller passes the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mesh::Text;
use mesh::route::Route;

/// How long a node is avoided after its first failure; doubled by each further one.
const AVOIDED: Duration = Duration::from_secs(5);
/// The longest time for which a node is avoided.
const AVOIDED_LONGEST: Duration = Duration::from_secs(60);
/// How long others wait for the connection that checks whether a node is back.
const PROBE: Duration = Duration::from_secs(15);

/// The nodes that are considered down.
#[derive(Debug, Default)]
pub(super) struct EndpointHealth {
    down: HashMap<Text, Down>,
}

#[derive(Debug)]
struct Down {
    failures: u32,
    /// When the next connection checks whether the node is back.
    retry: Instant,
}

/// What is remembered of the endpoint of a route: its node or, if that is unknown, its uid.
pub(super) fn key(route: &Route) -> Option<&Text> {
    match route {
        Route::Tunnel { workload, peer, .. } => {
            let is_known = *peer == workload.uid && !workload.node.is_empty();
            Some(if is_known { &workload.node } else { peer })
        }
        Route::Direct { workload, .. } => workload.as_ref().map(|w| {
            let is_known = !w.node.is_empty();
            if is_known { &w.node } else { &w.uid }
        }),
        Route::Refuse { .. } => None,
    }
}

impl EndpointHealth {
    /// Whether to use another endpoint than those of a node. Once the time has come, one caller
    /// gets `false` and checks whether the node is back.
    pub(super) fn is_avoided(&mut self, key: &Text, now: Instant) -> bool {
        match self.down.get_mut(key) {
            Some(down) if now >= down.retry => {
                down.retry = now + PROBE;
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    /// A node did not answer.
    pub(super) fn failed(&mut self, key: &Text, now: Instant) {
        let down = self.down.entry(key.clone()).or_insert(Down {
            failures: 0,
            retry: now,
        });
        let avoided = AVOIDED * 2_u32.pow(down.failures.min(10));
        down.failures += 1;
        down.retry = now + avoided.min(AVOIDED_LONGEST);
    }

    /// A node answered.
    pub(super) fn answered(&mut self, key: &Text) {
        self.down.remove(key);
    }

    /// Forgets nodes that nothing has connected to for long.
    pub(super) fn forget(&mut self, now: Instant) {
        self.down
            .retain(|_, down| now < down.retry + AVOIDED_LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_answer_is_avoided_and_checked_by_one_connection() {
        let (mut health, start) = (EndpointHealth::default(), Instant::now());
        let node = Text::from("node-1");
        let avoided =
            |health: &mut EndpointHealth, after: Duration| health.is_avoided(&node, start + after);
        let second = Duration::from_secs(1);
        assert!(!avoided(&mut health, Duration::ZERO));
        health.failed(&node, start);
        assert!(avoided(&mut health, AVOIDED - second));
        assert!(!avoided(&mut health, AVOIDED), "this one checks");
        assert!(avoided(&mut health, AVOIDED), "the others do not");
        health.failed(&node, start + AVOIDED);
        assert!(
            avoided(&mut health, AVOIDED * 3 - second),
            "for twice as long"
        );
        assert!(!avoided(&mut health, AVOIDED * 3));
        health.answered(&node);
        assert!(!avoided(&mut health, AVOIDED * 3));
    }

    #[test]
    fn nodes_are_avoided_for_a_minute_at_most_and_forgotten() {
        let (mut health, now) = (EndpointHealth::default(), Instant::now());
        let node = Text::from("node-1");
        (0..100).for_each(|_| health.failed(&node, now));
        assert!(health.is_avoided(&node, now + AVOIDED_LONGEST - AVOIDED));
        assert!(!health.is_avoided(&node, now + AVOIDED_LONGEST));
        health.forget(now + AVOIDED_LONGEST * 3);
        assert!(health.down.is_empty());
    }
}
