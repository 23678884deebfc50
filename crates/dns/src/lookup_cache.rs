//! Lookups with a cache in front of them: concurrent ones of the same key are one, and a stale
//! answer is used if a lookup takes long.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::bounded_map::{BoundedMap, CacheBudget, CacheLimits};
use crate::validity::STALE_ANSWER_DELAY;

/// What is known from earlier lookups of one key.
pub(super) trait Knowledge: Default {
    /// What is looked up.
    type Key: Clone + Debug + Eq + Hash + 'static;
    /// The result of a lookup, or why there is none.
    type Outcome;
    /// The answer for those who ask.
    type Answer: Clone + Debug;

    /// The answer that needs no lookup.
    fn valid(&self, now: Instant) -> Option<Self::Answer>;

    /// The answer to use if a lookup fails or takes long.
    fn stale(&self, now: Instant) -> Option<Self::Answer>;

    /// Records the outcome of a lookup.
    fn record(&mut self, outcome: Self::Outcome, now: Instant) -> Self::Answer;

    /// The memory of the key and of what is known, in bytes; `None` if nothing is known.
    fn size(&self, key: &Self::Key) -> Option<usize>;
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the cache.
    Cache,
    /// From a lookup that another client had started.
    SharedLookup,
    /// From a lookup for this client.
    OwnLookup,
}

/// The cache of one pod.
#[derive(Debug)]
pub(super) struct LookupCache<V: Knowledge> {
    state: Mutex<State<V>>,
}

#[derive(Debug)]
struct State<V: Knowledge> {
    known: BoundedMap<V::Key, V>,
    /// The lookups in progress.
    running: HashMap<V::Key, watch::Receiver<Option<V::Answer>>>,
}

impl<V: Knowledge + 'static> LookupCache<V> {
    /// Creates an empty cache.
    pub(super) fn new(limits: CacheLimits, budget: Arc<CacheBudget>) -> Self {
        Self {
            state: Mutex::new(State {
                known: BoundedMap::new(limits, budget),
                running: HashMap::new(),
            }),
        }
    }

    /// The answer that needs no lookup.
    pub(super) fn valid(&self, key: &V::Key) -> Option<V::Answer> {
        let mut state = self.state.lock();
        state.known.get(key)?.valid(Instant::now())
    }

    /// Records the outcome of a lookup, and returns the answer for those who asked.
    fn record(&self, key: &V::Key, outcome: V::Outcome) -> V::Answer {
        let mut state = self.state.lock();
        let mut known = state.known.remove(key).unwrap_or_default();
        let answer = known.record(outcome, Instant::now());
        if let Some(size) = known.size(key) {
            state.known.insert(key.clone(), known, size);
        }
        answer
    }

    /// Returns the answer of the cache, or else that of a lookup. `look_up` is called unless one
    /// of this key is in progress; it runs in its own task, so that it outlives the client. No
    /// answer means that the lookup was cancelled.
    pub(super) async fn get<F>(
        self: &Arc<Self>,
        key: &V::Key,
        look_up: impl FnOnce() -> F,
    ) -> (Option<V::Answer>, Origin)
    where
        F: Future<Output = V::Outcome> + 'static,
    {
        let (mut lookup, stale, origin) = {
            let mut state = self.state.lock();
            let now = Instant::now();
            let known = state.known.get(key);
            if let Some(answer) = known.and_then(|known| known.valid(now)) {
                return (Some(answer), Origin::Cache);
            }
            let stale = known.and_then(|known| known.stale(now));
            match state.running.get(key) {
                Some(running) => (running.clone(), stale, Origin::SharedLookup),
                None => {
                    let lookup = self.clone().start(key.clone(), look_up());
                    state.running.insert(key.clone(), lookup.clone());
                    (lookup, stale, Origin::OwnLookup)
                }
            }
        };
        let finished = async {
            let answer = lookup.wait_for(Option::is_some).await;
            answer.ok().and_then(|answer| answer.clone())
        };
        let answer = match stale {
            Some(stale) => timeout(STALE_ANSWER_DELAY, finished)
                .await
                .unwrap_or(Some(stale)),
            None => finished.await,
        };
        (answer, origin)
    }

    /// Starts a lookup.
    fn start(
        self: Arc<Self>,
        key: V::Key,
        lookup: impl Future<Output = V::Outcome> + 'static,
    ) -> watch::Receiver<Option<V::Answer>> {
        let (sender, receiver) = watch::channel(None);
        tokio::task::spawn_local(async move {
            let running = RunningLookup { cache: self, key };
            let outcome = lookup.await;
            let answer = running.cache.record(&running.key, outcome);
            let _ = sender.send(Some(answer)); // fails if no client waits any more
        });
        receiver
    }
}

/// A lookup in progress; it ends when this is dropped.
struct RunningLookup<V: Knowledge> {
    cache: Arc<LookupCache<V>>,
    key: V::Key,
}

impl<V: Knowledge> Drop for RunningLookup<V> {
    fn drop(&mut self) {
        self.cache.state.lock().running.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounded_map::tests::budget;
    use std::future::pending;
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tokio::task::{LocalSet, spawn_local};

    /// What is known in these tests: the last number, and whether it is valid.
    #[derive(Debug, Default)]
    struct Number {
        last: Option<u8>,
        is_valid: bool,
    }

    impl Knowledge for Number {
        type Key = &'static str;
        type Outcome = (u8, bool);
        type Answer = u8;

        fn valid(&self, _: Instant) -> Option<u8> {
            self.last.filter(|_| self.is_valid)
        }

        fn stale(&self, _: Instant) -> Option<u8> {
            self.last
        }

        fn record(&mut self, (number, is_valid): (u8, bool), _: Instant) -> u8 {
            let last = Some(number);
            *self = Self { last, is_valid };
            number
        }

        fn size(&self, key: &&'static str) -> Option<usize> {
            self.last.map(|_| key.len())
        }
    }

    fn cache() -> Arc<LookupCache<Number>> {
        let limits = CacheLimits {
            entries: 10,
            bytes: 10_000,
        };
        Arc::new(LookupCache::new(limits, budget(10_000)))
    }

    #[tokio::test]
    async fn concurrent_lookups_of_a_key_are_one() {
        let test = async {
            let cache = cache();
            let (send, receive) = oneshot::channel();
            let look_up = async { (receive.await.unwrap(), false) };
            let first = cache.get(&"a", || look_up);
            let unexpected = || -> std::future::Pending<(u8, bool)> { panic!("another lookup") };
            let others = async {
                let second = cache.get(&"a", unexpected);
                let third = cache.get(&"a", unexpected);
                let another = cache.get(&"b", || async { (2, true) });
                let answer = async {
                    // The second and the third are waiting by now.
                    tokio::task::yield_now().await;
                    send.send(1).unwrap();
                };
                tokio::join!(second, third, another, answer)
            };
            let (first, (second, third, another, ())) = tokio::join!(first, others);
            assert_eq!(first, (Some(1), Origin::OwnLookup));
            assert_eq!(second, (Some(1), Origin::SharedLookup));
            assert_eq!(third, second);
            assert_eq!(another, (Some(2), Origin::OwnLookup));
            let later = cache.get(&"b", unexpected).await;
            assert_eq!(later, (Some(2), Origin::Cache));
            let later = cache.get(&"a", || async { (3, true) }).await;
            assert_eq!(later, (Some(3), Origin::OwnLookup), "it was not valid");
            assert_eq!(cache.valid(&"a"), Some(3));
            assert!(cache.state.lock().running.is_empty());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_lookup_outlives_its_client() {
        let test = async {
            let cache = cache();
            let (send, receive) = oneshot::channel();
            let client = cache.clone();
            let client = spawn_local(async move {
                let look_up = || async { (receive.await.unwrap(), true) };
                client.get(&"a", look_up).await
            });
            while cache.state.lock().running.is_empty() {
                tokio::task::yield_now().await;
            }
            client.abort();
            assert!(client.await.is_err());
            send.send(1).unwrap();
            let answer = cache.get(&"a", pending::<(u8, bool)>).await;
            assert_eq!(answer.0, Some(1));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_cancelled_lookup_is_not_waited_for() {
        let cache = cache();
        let client = async {
            let look_up = || async { panic!("a lookup that panics") };
            assert_eq!(cache.get(&"a", look_up).await.0, None);
            cache.get(&"a", || async { (1, true) }).await
        };
        let answer = LocalSet::new().run_until(client).await;
        assert_eq!(answer, (Some(1), Origin::OwnLookup));
    }

    #[tokio::test]
    async fn a_stale_answer_is_used_if_the_lookup_takes_long() {
        let test = async {
            let cache = cache();
            cache.record(&"a", (1, false));
            assert_eq!(cache.valid(&"a"), None);
            let started = Instant::now();
            let answer = cache.get(&"a", pending::<(u8, bool)>).await;
            assert_eq!(answer, (Some(1), Origin::OwnLookup));
            assert!(started.elapsed() > Duration::from_secs(1));
            assert!(!cache.state.lock().running.is_empty(), "it continues");
        };
        LocalSet::new().run_until(test).await;
    }
}
