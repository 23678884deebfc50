//! On-demand discovery: addresses are requested when a pod first connects to them.
//!
//! Each name is requested once. Connections that wait for it continue when the mesh with the answer
//! is active; the answer may be that nothing has that address. Without an answer it is unknown
//! whether the address is in the mesh, so the connection must not be opened.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a connection waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of names that one pod has requested, which bounds memory here and in the control
/// plane. The oldest answer is dropped for the next name; no pod displaces those of another.
const MAX_NAMES_PER_POD: usize = 256;

/// It is unknown whether an address is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UndiscoveredAddress {
    /// The control plane did not answer in time. Likely cause: it is unreachable or overloaded.
    #[error("the control plane did not answer for {0} within {s} s", s = TIMEOUT.as_secs())]
    NoAnswer(String),
    /// The pod waits for too many other addresses. Likely cause: it scans a network.
    #[error("the pod already waits for {n} other addresses", n = MAX_NAMES_PER_POD)]
    TooMany,
}

/// A change of the subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DemandRequest {
    /// Request the address of this name.
    Subscribe(String),
    /// Cancel the subscription to a name that nothing has.
    Unsubscribe(String),
}

/// Addresses requested on demand.
#[derive(Debug)]
pub struct Demand {
    requests: UnboundedSender<DemandRequest>,
    names: Mutex<Names>,
    progress: watch::Sender<Progress>,
}

/// The requested names.
#[derive(Debug, Default)]
struct Names {
    answers: HashMap<String, Option<Answer>>,
    /// The names that each pod was the first to request, by its uid, oldest first.
    of_pod: HashMap<String, VecDeque<String>>,
}

/// The answer for a name.
#[derive(Debug, Clone, Copy)]
struct Answer {
    push: u64,
    /// Whether anything has the name. The control plane keeps it up to date from then on.
    exists: bool,
}

/// Numbers of the latest active push and of the latest push with answers.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    active: u64,
    answered: u64,
}

impl Demand {
    /// Creates an empty set. The receiver of `requests` changes the subscriptions.
    pub fn new(requests: UnboundedSender<DemandRequest>) -> Self {
        Self {
            requests,
            names: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// Waits until the control plane has answered for an address that a pod, given by its uid,
    /// connects to, at most 5 s.
    ///
    /// # Errors
    /// [`UndiscoveredAddress`] if it is still unknown whether the address is in the mesh.
    pub async fn wait_for_address(
        &self,
        pod: &str,
        network: &str,
        ip: IpAddr,
    ) -> Result<(), UndiscoveredAddress> {
        let name = format!("{network}/{ip}");
        self.request(pod, &name)?;
        let mut progress = self.progress.subscribe();
        let active = progress.wait_for(|p| self.answer(&name).is_some_and(|push| push <= p.active));
        match timeout(TIMEOUT, active).await {
            Ok(_) => Ok(()),
            Err(_) => Err(UndiscoveredAddress::NoAnswer(name)),
        }
    }

    /// Requests a name unless it was requested before. A name whose resource was removed meanwhile
    /// is requested again.
    fn request(&self, pod: &str, name: &str) -> Result<(), UndiscoveredAddress> {
        let mut names = self.names.lock();
        let Names { answers, of_pod } = &mut *names;
        if let Some(answer) = answers.get_mut(name) {
            let active = self.progress.borrow().active;
            if answer.take_if(|a| a.exists && a.push <= active).is_some() {
                self.send(DemandRequest::Subscribe(name.to_owned()));
            }
            return Ok(());
        }
        let own = of_pod.entry(pod.to_owned()).or_default();
        if own.len() >= MAX_NAMES_PER_POD {
            let answered = own
                .iter()
                .position(|n| answers.get(n).is_none_or(Option::is_some));
            let oldest = answered.and_then(|at| own.remove(at));
            self.forget(answers, oldest.ok_or(UndiscoveredAddress::TooMany)?);
        }
        own.push_back(name.to_owned());
        answers.insert(name.to_owned(), None);
        self.send(DemandRequest::Subscribe(name.to_owned()));
        Ok(())
    }

    /// Forgets the names that a pod requested, given its uid, after it has left.
    pub fn forget_pod(&self, pod: &str) {
        let mut names = self.names.lock();
        for name in names.of_pod.remove(pod).unwrap_or_default() {
            self.forget(&mut names.answers, name);
        }
    }

    fn forget(&self, answers: &mut HashMap<String, Option<Answer>>, name: String) {
        let exists = answers.remove(&name).flatten().is_some_and(|a| a.exists);
        if !exists {
            self.send(DemandRequest::Unsubscribe(name));
        }
    }

    fn send(&self, request: DemandRequest) {
        let _ = self.requests.send(request); // fails only when the process exits
    }

    /// The number of the push that answered for a name. A name that was forgotten meanwhile was
    /// answered.
    fn answer(&self, name: &str) -> Option<u64> {
        match self.names.lock().answers.get(name) {
            Some(answer) => answer.map(|a| a.push),
            None => Some(0),
        }
    }

    /// Records that a push, which is not active yet, answers for these names: those of existing
    /// resources and those that nothing has.
    pub(super) fn record_answers<'a>(
        &self,
        push: u64,
        existing: impl Iterator<Item = &'a str>,
        missing: impl Iterator<Item = &'a str>,
    ) {
        let mut names = self.names.lock();
        let existing = existing.map(|name| (name, true));
        for (name, exists) in existing.chain(missing.map(|name| (name, false))) {
            if let Some(answer) = names.answers.get_mut(name) {
                let push = answer.map_or(push, |a| a.push);
                *answer = Some(Answer { push, exists });
            }
        }
        drop(names);
        self.progress.send_modify(|p| p.answered = push);
    }

    /// Records that the mesh of this push is active.
    pub fn mark_active(&self, push: u64) {
        self.progress.send_modify(|p| p.active = push);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::{empty, once};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn demand() -> (Demand, UnboundedReceiver<DemandRequest>) {
        let (sender, requests) = unbounded_channel();
        (Demand::new(sender), requests)
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn subscribe(name: &str) -> Option<DemandRequest> {
        Some(DemandRequest::Subscribe(name.to_owned()))
    }

    fn unsubscribe(name: &str) -> Option<DemandRequest> {
        Some(DemandRequest::Unsubscribe(name.to_owned()))
    }

    #[tokio::test]
    async fn all_waiters_for_a_name_continue_when_its_answer_is_active() {
        let (demand, mut requests) = demand();
        let mut context = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (
            pin!(demand.wait_for_address("a", "net", ip(1))),
            pin!(demand.wait_for_address("b", "net", ip(1))),
        );
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert_eq!(requests.try_recv().ok(), subscribe("net/10.0.0.1"));
        assert!(requests.try_recv().is_err(), "one request for both");
        demand.record_answers(7, empty(), ["net/10.0.0.1", "never-requested"].into_iter());
        assert!(
            first.as_mut().poll(&mut context).is_pending(),
            "the push is not active"
        );
        demand.mark_active(7);
        assert_eq!(first.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(Ok(())));
        let third = demand.wait_for_address("c", "net", ip(1)).await;
        assert_eq!(third, Ok(()), "the name is known");
        assert!(requests.try_recv().is_err());
        demand.record_answers(8, once("net/10.0.0.1"), empty());
        demand.mark_active(8);
        demand.request("a", "net/10.0.0.1").unwrap();
        let again = requests.try_recv().ok();
        assert_eq!(again, subscribe("net/10.0.0.1"), "it was removed since");
    }

    #[test]
    fn a_pod_that_scans_displaces_only_its_own_names() {
        let (demand, mut requests) = demand();
        demand.request("other", "net/other").unwrap();
        for i in 0..MAX_NAMES_PER_POD {
            demand.request("scanner", &format!("net/{i}")).unwrap();
        }
        let one_more = demand.request("scanner", "net/x");
        assert_eq!(one_more, Err(UndiscoveredAddress::TooMany));
        assert_eq!(demand.request("scanner", "net/other"), Ok(()), "known");
        assert_eq!(demand.request("other", "net/y"), Ok(()));
        while requests.try_recv().is_ok() {}
        demand.record_answers(1, once("net/1"), once("net/2"));
        demand.request("scanner", "net/x").unwrap();
        assert_eq!(
            requests.try_recv().ok(),
            subscribe("net/x"),
            "the subscription to what exists remains"
        );
        demand.request("scanner", "net/z").unwrap();
        assert_eq!(requests.try_recv().ok(), unsubscribe("net/2"));
        assert_eq!(requests.try_recv().ok(), subscribe("net/z"));
        demand.forget_pod("scanner");
        demand.forget_pod("other");
        assert!(demand.names.lock().answers.is_empty() && demand.names.lock().of_pod.is_empty());
    }
}
