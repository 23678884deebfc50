//! When pods that no plugin presented are searched for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Delay before the next search for pods that were not found; doubles up to `LAST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Pods that were searched for and not found.
#[derive(Debug, Default)]
pub(crate) struct PodSearch(RefCell<SearchState>);

#[derive(Debug, Default)]
struct SearchState {
    /// Number of failed searches, by uid.
    missing: BTreeMap<String, u32>,
    delay: Duration,
    next: Option<Instant>,
}

impl PodSearch {
    /// The time of the next search, if pods are missing.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.borrow().next
    }

    /// Whether this pod was searched for and not found.
    pub(super) fn is_missing(&self, uid: &str) -> bool {
        self.0.borrow().missing.contains_key(uid)
    }

    /// Whether a search for these pods is due.
    pub(super) fn is_due(&self, uids: &BTreeSet<String>, now: Instant) -> bool {
        let state = self.0.borrow();
        uids.iter().any(|uid| !state.missing.contains_key(uid))
            || state.next.is_some_and(|next| next <= now)
    }

    /// Records the pods that a search did not find. Returns those that it did not find for the
    /// second time; at the first, their processes may just be starting.
    pub(super) fn record(&self, uids: &BTreeSet<String>, now: Instant) -> BTreeSet<String> {
        let mut state = self.0.borrow_mut();
        let count = |uid: &String| {
            state
                .missing
                .get(uid)
                .copied()
                .unwrap_or_default()
                .saturating_add(1)
        };
        let counts: BTreeMap<String, u32> =
            uids.iter().map(|uid| (uid.clone(), count(uid))).collect();
        let any_new = counts.values().any(|count| *count == 1);
        state.delay = if any_new {
            FIRST_RETRY
        } else {
            (state.delay * 2).clamp(FIRST_RETRY, LAST_RETRY)
        };
        state.next = (!uids.is_empty()).then(|| now + state.delay);
        state.missing = counts;
        state
            .missing
            .iter()
            .filter(|(_, count)| **count == 2)
            .map(|(uid, _)| uid.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[test]
    fn a_missing_pod_is_searched_at_growing_intervals() {
        let (search, mut now) = (PodSearch::default(), Instant::now());
        let mut delays = Vec::new();
        for _ in 0..10 {
            search.record(&uids(&["a"]), now);
            let next = search.next().unwrap();
            assert!(!search.is_due(&uids(&["a"]), next - Duration::from_millis(1)));
            assert!(search.is_due(&uids(&["a"]), next));
            delays.push(next - now);
            now = next;
        }
        assert_eq!(
            delays[..4],
            [500, 1000, 2000, 4000].map(Duration::from_millis)
        );
        assert_eq!(delays[7..], [LAST_RETRY; 3]);
        // A further missing pod is due at once, and resets the interval.
        assert!(search.is_due(&uids(&["a", "b"]), now));
        search.record(&uids(&["a", "b"]), now);
        assert_eq!(search.next(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn a_pod_is_reported_lost_at_the_second_search_only() {
        let (search, now) = (PodSearch::default(), Instant::now());
        assert_eq!(search.record(&uids(&["a"]), now), uids(&[]));
        assert_eq!(search.record(&uids(&["a", "b"]), now), uids(&["a"]));
        assert_eq!(search.record(&uids(&["a", "b"]), now), uids(&["b"]));
        assert!(search.is_missing("a") && search.is_missing("b"));
    }

    #[test]
    fn the_search_ends_when_every_pod_is_found() {
        let (search, now) = (PodSearch::default(), Instant::now());
        search.record(&uids(&["a"]), now);
        search.record(&uids(&[]), now);
        assert_eq!((search.next(), search.is_missing("a")), (None, false));
        assert!(!search.is_due(&uids(&[]), now + LAST_RETRY));
        // One that is missing again counts from the start.
        assert_eq!(search.record(&uids(&["a"]), now), uids(&[]));
    }
}
