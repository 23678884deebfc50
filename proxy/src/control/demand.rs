//! Addresses that are asked for when something connects to them.
//!
//! A name is asked for once. Whoever waits for it goes on when the mesh that has the answer is in force, or when the answer
//! was that there is no such thing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a connection waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A pod that connects to ever new addresses fills neither our memory nor the control plane's.
const MOST: usize = 65_536;

/// What is asked for, one by one.
#[derive(Debug)]
pub(crate) struct Demand {
    ask: UnboundedSender<String>,
    /// The number of the push that has the answer, once there is one.
    names: Mutex<HashMap<String, Option<u64>>>,
    /// The number of the last push that is in force, and of the last answer.
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    in_force: u64,
    answered: u64,
}

impl Demand {
    /// Names are asked for by whoever has the other end of `ask`.
    pub(crate) fn new(ask: UnboundedSender<String>) -> Self {
        Self { ask, names: Mutex::default(), progress: watch::Sender::new(Progress::default()) }
    }

    /// Completes when it is known what is at an address, or the wait has been long enough.
    pub(crate) async fn address(&self, network: &str, ip: IpAddr) {
        self.name(&format!("{network}/{ip}")).await;
    }

    async fn name(&self, name: &str) {
        let known = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if !names.contains_key(name) {
                if names.len() >= MOST {
                    return;
                }
                names.insert(name.to_owned(), None);
                let _ = self.ask.send(name.to_owned()); // its thread ends with the process
            }
            names.get(name).copied().flatten()
        };
        let mut progress = self.progress.subscribe();
        if known.is_some_and(|push| push <= progress.borrow().in_force) {
            return;
        }
        let in_force = progress.wait_for(|p| self.answer(name).is_some_and(|push| push <= p.in_force));
        if timeout(PATIENCE, in_force).await.is_err() {
            tracing::warn!(name, "the control plane does not say what it is");
        }
    }

    fn answer(&self, name: &str) -> Option<u64> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().flatten()
    }

    /// A push answers these names; it is not in force yet.
    pub(super) fn answered<'a>(&self, push: u64, answers: impl Iterator<Item = &'a str>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for name in answers {
            if let Some(answer @ None) = names.get_mut(name) {
                *answer = Some(push);
            }
        }
        drop(names);
        self.progress.send_modify(|p| p.answered = push);
    }

    /// The mesh of this push, and all before it, are in force.
    pub(crate) fn in_force(&self, push: u64) {
        self.progress.send_modify(|p| p.in_force = push);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn all_that_wait_for_a_name_go_on_when_its_answer_is_in_force() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _in = runtime.enter();
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let demand = Demand::new(ask);
        let ip = IpAddr::from([10, 0, 0, 1]);
        let mut context = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (pin!(demand.address("net", ip)), pin!(demand.address("net", ip)));
        assert!(first.as_mut().poll(&mut context).is_pending() && second.as_mut().poll(&mut context).is_pending());
        assert_eq!((asked.try_recv().ok().as_deref(), asked.try_recv().ok()), (Some("net/10.0.0.1"), None));
        demand.answered(7, ["net/10.0.0.1", "never-asked"].into_iter());
        assert!(first.as_mut().poll(&mut context).is_pending(), "it is not in force");
        demand.in_force(7);
        assert_eq!(first.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(()));
        let mut third = pin!(demand.address("net", ip));
        assert_eq!(third.as_mut().poll(&mut context), Poll::Ready(()), "it is known");
    }
}
