//! The pool of outgoing tunnels. Connections between the same pods share a tunnel until it is full.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh::{HostPort, Text, TunnelAddr};
use tokio::sync::watch;

use crate::tunnel::Tunnel;

/// The key of a tunnel. Connections share a tunnel if their keys are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The uid of the client pod.
    pub pod: String,
    /// The address of the proxy at the other end.
    pub to: TunnelAddr,
    /// Accepted SPIFFE ids of the peer.
    pub expected: Vec<Text>,
    /// The key of the inner tunnel, if this is a nested one.
    pub inner: Option<InnerKey>,
}

/// The additional key of an inner tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InnerKey {
    /// The destination requested on the outer tunnel.
    pub authority: HostPort,
    /// Accepted SPIFFE ids of the inner tunnel's peer.
    pub expected: Vec<Text>,
}

/// The tunnels of one worker.
pub struct Pool<E> {
    state: Rc<RefCell<PoolState<Tunnel, Attempt<E>>>>,
}

/// The result of an attempt to open a tunnel; `None` until it completes.
type Attempt<E> = watch::Receiver<Option<Result<Tunnel, E>>>;

impl<E: Clone + 'static> Pool<E> {
    /// Creates a pool that keeps a tunnel without streams for `idle_timeout`.
    pub fn new(idle_timeout: Duration) -> Self {
        Self {
            state: Rc::new(RefCell::new(PoolState::new(idle_timeout))),
        }
    }

    /// Returns a tunnel with room for another stream, opening one with `open` if there is none.
    /// Concurrent callers share an attempt and its failure; the next call after a failure starts a
    /// new attempt. Callers that do not fit into the tunnel of an attempt open others.
    pub async fn get<F>(&self, key: &TunnelKey, open: impl Fn() -> F) -> Result<Tunnel, E>
    where
        F: Future<Output = Result<Tunnel, E>> + 'static,
    {
        loop {
            let decision = self.state.borrow_mut().decide(key, Instant::now());
            let attempt = match decision {
                Decision::Use(tunnel) => return Ok(tunnel),
                Decision::Wait(attempt) => attempt,
                Decision::Open => self.spawn_attempt(key.clone(), open()),
            };
            let tunnel = result(attempt).await?;
            // A new tunnel that never has room, as of a peer that drains it, is not replaced.
            if tunnel.has_room() || tunnel.streams() == 0 {
                return Ok(tunnel);
            }
        }
    }

    /// Opens a tunnel in a separate task, so that the attempt outlives its initiator.
    fn spawn_attempt(
        &self,
        key: TunnelKey,
        open: impl Future<Output = Result<Tunnel, E>> + 'static,
    ) -> Attempt<E> {
        let (done, attempt) = watch::channel(None);
        self.state.borrow_mut().started(&key, attempt.clone());
        let state = self.state.clone();
        tokio::task::spawn_local(async move {
            let result = open.await;
            let opened = result.as_ref().ok().cloned();
            state.borrow_mut().completed(&key, opened, Instant::now());
            let _ = done.send(Some(result)); // all callers may have been dropped
        });
        attempt
    }

    /// Removes a tunnel that accepts no more streams because it has closed or its peer is draining
    /// it.
    pub fn discard(&self, key: &TunnelKey, closed: &Tunnel) {
        self.state.borrow_mut().discard(key, closed);
    }

    /// Drops tunnels that have closed or have been idle for too long.
    pub fn evict_idle(&self, now: Instant) {
        self.state.borrow_mut().evict_idle(now);
    }

    /// Drops the tunnels of a pod that left.
    pub fn remove_pod(&self, uid: &str) {
        self.state.borrow_mut().remove_pod(uid);
    }

    /// Drops all tunnels. Each closes once its streams have ended and their data has been sent.
    pub fn clear(&self) {
        self.state.borrow_mut().slots.clear();
    }
}

/// Waits for the result of an attempt.
async fn result<E: Clone>(mut attempt: Attempt<E>) -> Result<Tunnel, E> {
    let done = attempt.wait_for(Option::is_some).await;
    match done.ok().and_then(|result| result.clone()) {
        Some(result) => result,
        None => pending().await, // the task was dropped: the runtime is shutting down
    }
}

/// What the pool needs to know about a tunnel.
pub(crate) trait PooledTunnel: Clone {
    /// Whether another stream can be opened; false once the tunnel has closed.
    fn has_room(&self) -> bool;

    /// Number of open streams.
    fn streams(&self) -> usize;

    /// Whether both handles refer to the same connection.
    fn is_same(&self, other: &Self) -> bool;
}

/// The decisions of a pool, without I/O. The caller passes the time. On [`Decision::Open`] it
/// reports the start and the end of its attempt, for which others wait by the handle `A`.
struct PoolState<T, A> {
    slots: HashMap<TunnelKey, Slot<T, A>>,
    /// How long a tunnel without streams is kept.
    idle_timeout: Duration,
}

struct Slot<T, A> {
    /// Open tunnels and when each was last used.
    tunnels: Vec<(T, Instant)>,
    /// The current attempt, which later callers also wait for.
    opening: Option<A>,
}

/// How a caller gets a tunnel.
#[derive(Debug, PartialEq, Eq)]
enum Decision<T, A> {
    /// Use this one.
    Use(T),
    /// Wait for this attempt of another caller. If its tunnel is full by then, decide again.
    Wait(A),
    /// Start an attempt.
    Open,
}

impl<T: PooledTunnel, A: Clone> PoolState<T, A> {
    fn new(idle_timeout: Duration) -> Self {
        Self {
            slots: HashMap::new(),
            idle_timeout,
        }
    }

    /// Decides how a caller gets a tunnel.
    #[must_use]
    fn decide(&mut self, key: &TunnelKey, now: Instant) -> Decision<T, A> {
        let Some(slot) = self.slots.get_mut(key) else {
            return Decision::Open;
        };
        if let Some((tunnel, used)) = slot.tunnels.iter_mut().find(|(t, _)| t.has_room()) {
            *used = now;
            return Decision::Use(tunnel.clone());
        }
        slot.opening.clone().map_or(Decision::Open, Decision::Wait)
    }

    /// Records the start of an attempt.
    fn started(&mut self, key: &TunnelKey, attempt: A) {
        let slot = self.slots.entry(key.clone()).or_insert_with(|| Slot {
            tunnels: Vec::new(),
            opening: None,
        });
        slot.opening = Some(attempt);
    }

    /// Records the end of an attempt and its tunnel, unless the attempt failed or the pod left.
    fn completed(&mut self, key: &TunnelKey, opened: Option<T>, now: Instant) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.opening = None;
            slot.tunnels.extend(opened.map(|t| (t, now)));
        }
    }

    fn discard(&mut self, key: &TunnelKey, closed: &T) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.tunnels.retain(|(t, _)| !t.is_same(closed));
        }
    }

    fn evict_idle(&mut self, now: Instant) {
        self.slots.retain(|_, slot| {
            slot.tunnels.retain_mut(|(tunnel, used)| {
                if tunnel.streams() > 0 {
                    *used = now;
                }
                tunnel.streams() > 0
                    || (tunnel.has_room() && now.duration_since(*used) < self.idle_timeout)
            });
            slot.opening.is_some() || !slot.tunnels.is_empty()
        });
    }

    fn remove_pod(&mut self, uid: &str) {
        self.slots.retain(|key, _| key.pod != uid);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    /// A tunnel with room for a number of streams.
    #[derive(Debug, Clone)]
    struct FakeTunnel(Rc<(Cell<usize>, usize)>);

    impl PartialEq for FakeTunnel {
        fn eq(&self, other: &Self) -> bool {
            self.is_same(other)
        }
    }

    impl FakeTunnel {
        fn with_room(room: usize) -> Self {
            Self(Rc::new((Cell::new(0), room)))
        }

        fn set_streams(&self, streams: usize) {
            self.0.0.set(streams);
        }
    }

    impl PooledTunnel for FakeTunnel {
        fn has_room(&self) -> bool {
            self.streams() < self.0.1
        }

        fn streams(&self) -> usize {
            self.0.0.get()
        }

        fn is_same(&self, other: &Self) -> bool {
            Rc::ptr_eq(&self.0, &other.0)
        }
    }

    fn key(pod: &str) -> TunnelKey {
        TunnelKey {
            pod: pod.to_owned(),
            to: std::net::SocketAddr::from(([10, 0, 0, 1], 15008)).into(),
            expected: Vec::new(),
            inner: None,
        }
    }

    /// A pool of pod "a" at a point in time; attempts are numbered.
    struct Scenario {
        state: PoolState<FakeTunnel, u32>,
        now: Instant,
    }

    impl Scenario {
        fn new() -> Self {
            let state = PoolState::new(IDLE);
            let now = Instant::now();
            Self { state, now }
        }

        fn with_tunnel(room: usize) -> (Self, FakeTunnel) {
            let mut pool = Self::new();
            pool.state.started(&key("a"), 1);
            let tunnel = pool.complete(Some(FakeTunnel::with_room(room)));
            (pool, tunnel.unwrap())
        }

        fn complete(&mut self, opened: Option<FakeTunnel>) -> Option<FakeTunnel> {
            self.state.completed(&key("a"), opened.clone(), self.now);
            opened
        }

        fn decide(&mut self) -> Decision<FakeTunnel, u32> {
            self.state.decide(&key("a"), self.now)
        }

        fn evict_after(&mut self, time: Duration) {
            self.now += time;
            self.state.evict_idle(self.now);
        }
    }

    #[test]
    fn callers_share_an_attempt_and_latecomers_its_tunnel() {
        let mut pool = Scenario::new();
        assert_eq!(pool.decide(), Decision::Open);
        pool.state.started(&key("a"), 1);
        assert_eq!(pool.decide(), Decision::Wait(1));
        assert_eq!(pool.decide(), Decision::Wait(1));
        assert_eq!(pool.state.decide(&key("b"), pool.now), Decision::Open);
        let tunnel = FakeTunnel::with_room(2);
        pool.complete(Some(tunnel.clone()));
        assert_eq!(pool.decide(), Decision::Use(tunnel));
    }

    #[test]
    fn callers_that_find_the_tunnel_full_open_and_share_another() {
        let (mut pool, first) = Scenario::with_tunnel(1);
        first.set_streams(1);
        assert_eq!(pool.decide(), Decision::Open);
        pool.state.started(&key("a"), 2);
        assert_eq!(pool.decide(), Decision::Wait(2));
        let second = FakeTunnel::with_room(1);
        pool.complete(Some(second.clone()));
        assert_eq!(pool.decide(), Decision::Use(second));
        first.set_streams(0);
        assert_eq!(pool.decide(), Decision::Use(first));
    }

    #[test]
    fn the_next_caller_after_a_failure_starts_a_new_attempt() {
        let mut pool = Scenario::new();
        pool.state.started(&key("a"), 1);
        pool.complete(None);
        assert_eq!(pool.decide(), Decision::Open);
    }

    #[test]
    fn a_discarded_tunnel_is_not_used_again() {
        let (mut pool, closed) = Scenario::with_tunnel(2);
        pool.state.started(&key("a"), 2);
        let other = pool.complete(Some(FakeTunnel::with_room(2))).unwrap();
        pool.state.discard(&key("a"), &closed);
        assert_eq!(pool.decide(), Decision::Use(other.clone()));
        pool.state.discard(&key("a"), &other);
        assert_eq!(pool.decide(), Decision::Open);
    }

    #[test]
    fn only_idle_and_closed_tunnels_are_evicted() {
        let (mut pool, tunnel) = Scenario::with_tunnel(2);
        pool.evict_after(IDLE / 2);
        assert_eq!(pool.decide(), Decision::Use(tunnel.clone()));
        // That use counts, and so do open streams.
        pool.evict_after(IDLE - Duration::from_secs(1));
        tunnel.set_streams(1);
        pool.evict_after(IDLE * 2);
        tunnel.set_streams(0);
        pool.evict_after(IDLE - Duration::from_secs(1));
        assert_eq!(pool.decide(), Decision::Use(tunnel));
        pool.evict_after(IDLE);
        assert!(pool.state.slots.is_empty());

        let (mut pool, _closed) = Scenario::with_tunnel(0);
        pool.evict_after(Duration::ZERO);
        assert!(pool.state.slots.is_empty());
    }

    #[test]
    fn eviction_spares_an_attempt() {
        let mut pool = Scenario::new();
        pool.state.started(&key("a"), 1);
        pool.evict_after(IDLE * 2);
        assert_eq!(pool.decide(), Decision::Wait(1));
    }

    #[test]
    fn a_pod_that_left_has_no_tunnels_and_gets_none() {
        let (mut pool, _tunnel) = Scenario::with_tunnel(1);
        pool.state.started(&key("a"), 2);
        pool.state.started(&key("b"), 3);
        pool.state.remove_pod("a");
        pool.complete(Some(FakeTunnel::with_room(1)));
        assert_eq!(pool.decide(), Decision::Open);
        assert_eq!(pool.state.decide(&key("b"), pool.now), Decision::Wait(3));
    }
}
