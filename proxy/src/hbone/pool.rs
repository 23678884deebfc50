//! Tunnels are shared: one for each pair of pods, and another when the first is full.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh::{HostPort, Text, TunnelAddr};
use tokio::sync::watch;

use super::client::Tunnel;

/// What must be equal for two connections to share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TunnelKey {
    /// The pod that connects: its uid.
    pub(crate) pod: String,
    pub(crate) to: TunnelAddr,
    /// SPIFFE ids, one of which the peer proves.
    pub(crate) expected: Vec<Text>,
    /// For a tunnel within that tunnel.
    pub(crate) inner: Option<InnerKey>,
}

/// What must be equal besides for two connections to share a tunnel within a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct InnerKey {
    /// What the outer one leads to.
    pub(crate) authority: HostPort,
    /// SPIFFE ids, one of which the peer at the end of the inner one proves.
    pub(crate) expected: Vec<Text>,
}

/// The tunnels of one worker.
pub(crate) struct Pool<E> {
    slots: Rc<RefCell<HashMap<TunnelKey, Slot<E>>>>,
    /// How long a tunnel without streams is kept.
    idle: Duration,
}

struct Slot<E> {
    tunnels: Vec<(Tunnel, Instant)>,
    /// The attempt that is going on, which latecomers wait for.
    opening: Option<watch::Receiver<Option<Result<Tunnel, E>>>>,
}

impl<E> Default for Slot<E> {
    fn default() -> Self {
        Self { tunnels: Vec::new(), opening: None }
    }
}

impl<E: Clone + 'static> Pool<E> {
    /// A tunnel without streams is kept for as long as `idle`.
    pub(crate) fn new(idle: Duration) -> Self {
        Self { slots: Rc::default(), idle }
    }

    /// A tunnel with room for one more stream; `open` makes one if there is none. All that ask meanwhile share the
    /// attempt, and its failure; the next to ask tries anew.
    pub(crate) async fn get<F>(&self, key: &TunnelKey, open: impl FnOnce() -> F) -> Result<Tunnel, E>
    where
        F: Future<Output = Result<Tunnel, E>> + 'static,
    {
        let mut open = Some(open);
        loop {
            let (mut attempt, ours) = {
                let mut slots = self.slots.borrow_mut();
                let slot = slots.entry(key.clone()).or_default();
                if let Some((tunnel, used)) = slot.tunnels.iter_mut().find(|(t, _)| t.has_room()) {
                    *used = Instant::now();
                    return Ok(tunnel.clone());
                }
                match (&slot.opening, open.take()) {
                    (None, Some(open)) => {
                        let attempt = self.begin(key.clone(), open());
                        slot.opening = Some(attempt.clone());
                        (attempt, true)
                    }
                    (Some(attempt), not_yet) => {
                        open = not_yet;
                        (attempt.clone(), false)
                    }
                    (None, None) => unreachable!("whoever has made an attempt returns with its result"),
                }
            };
            let result = match attempt.wait_for(Option::is_some).await {
                Ok(result) => result.clone(),
                Err(_) => None, // the task was dropped: the runtime is ending
            };
            match result {
                // Others may have filled our own one already: the stream waits for room then.
                Some(Ok(tunnel)) if ours || tunnel.has_room() => return Ok(tunnel),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(e),
                None => std::future::pending().await,
            }
        }
    }

    /// In a task of its own, so that the attempt outlives whoever asked first.
    fn begin(
        &self,
        key: TunnelKey,
        open: impl Future<Output = Result<Tunnel, E>> + 'static,
    ) -> watch::Receiver<Option<Result<Tunnel, E>>> {
        let (done, attempt) = watch::channel(None);
        let slots = self.slots.clone();
        tokio::task::spawn_local(async move {
            let result = open.await;
            if let Some(slot) = slots.borrow_mut().get_mut(&key) {
                slot.opening = None;
                slot.tunnels.extend(result.clone().ok().map(|t| (t, Instant::now())));
            }
            let _ = done.send(Some(result)); // whoever asked has given up
        });
        attempt
    }

    /// Takes out a tunnel that opens no more streams: it has ended, or its peer is about to end it and lets those that are
    /// open finish.
    pub(crate) fn discard(&self, key: &TunnelKey, closed: &Tunnel) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(key) {
            slot.tunnels.retain(|(t, _)| !t.is(closed));
        }
    }

    /// Gives up tunnels that ended, and those that nobody has used for long.
    pub(crate) fn tidy(&self, now: Instant) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.tunnels.retain_mut(|(tunnel, used)| {
                if tunnel.streams() > 0 {
                    *used = now;
                }
                tunnel.streams() > 0 || (tunnel.has_room() && now.duration_since(*used) < self.idle)
            });
            slot.opening.is_some() || !slot.tunnels.is_empty()
        });
    }

    /// Gives up the tunnels of a pod that has left.
    pub(crate) fn forget_pod(&self, uid: &str) {
        self.slots.borrow_mut().retain(|key, _| key.pod != uid);
    }
}
