//! Judges what was seen: plain text of a pod that is called verified is a violation, unless one of
//! the pod's capabilities or a change of its membership excuses it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use agent_status::VerificationState;

use super::action::Action;
use super::observer;
use super::scene::{OUTSIDE, PODS, Scene, name, node};
use super::traffic::Marker;
use crate::sniffer::Tally;

/// Time between two requests for the status of a node.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// How long the other pods' proxies may need to learn that a pod has joined or left.
const MEMBERSHIP_SETTLES: Duration = Duration::from_secs(2);

/// How long a change in a pod may remain undetected, and the verification that preceded it valid.
const CHANGE_SETTLES: Duration = Duration::from_secs(1);

/// Why plain text does not count as a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// CAP_NET_ADMIN in the pod: its rules were changed, and were not verified again yet.
    NetAdmin,
    /// The pod was joining or leaving.
    Membership,
    /// CAP_NET_RAW in the pod: the socket has a mark.
    NetRaw,
    /// The agent did not call both pods verified.
    NotVerified,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN, until verified again",
            Self::Membership => "outside, joining or leaving",
            Self::NetRaw => "CAP_NET_RAW, marked socket",
            Self::NotVerified => "not called verified",
        })
    }
}

/// Plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// A frame outside of the pods in which a marker of a pod of the mesh is readable.
    Readable { at: SystemTime, marker: Marker },
    /// Data from outside the mesh, which an application in the mesh received.
    Accepted { at: SystemTime, marker: Marker },
}

/// The judgement.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What all observers saw.
    pub seen: Tally,
    /// Excused evidence.
    pub excused: BTreeMap<Excuse, usize>,
    /// The others.
    pub violations: Vec<String>,
    /// The time until a pod was verified again, for each change in it.
    pub verified_after: Vec<Duration>,
    /// Number of times that the status was read.
    pub polls: usize,
}

/// A time within which plain text of some pods is excused.
#[derive(Debug)]
struct Window {
    pods: Vec<usize>,
    excuse: Excuse,
    begun: SystemTime,
    ended: SystemTime,
    what: String,
}

/// What an agent said of a pod.
#[derive(Debug, Clone, Copy)]
struct Poll {
    requested: SystemTime,
    answered: SystemTime,
    /// When the pod was verified; `None` if it is not called verified.
    verified_at: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct Shared {
    evidence: Mutex<Vec<Evidence>>,
    polls: Mutex<[Vec<Poll>; PODS]>,
}

/// Collects evidence and statuses in the background.
#[derive(Debug)]
pub struct Judge {
    shared: Arc<Shared>,
    windows: Mutex<Vec<Window>>,
    ended: Arc<AtomicBool>,
    observers: Mutex<Vec<JoinHandle<Tally>>>,
    pollers: Mutex<Vec<JoinHandle<()>>>,
}

impl Judge {
    /// Starts to observe.
    pub fn new(scene: Arc<Scene>) -> Self {
        let (shared, ended) = (
            Arc::new(Shared::default()),
            Arc::new(AtomicBool::new(false)),
        );
        let fabric = scene.fabric();
        let observers = [scene.node(0), scene.node(1), &fabric].map(|netns| {
            let shared = shared.clone();
            observer::observe(netns, ended.clone(), move |at, marker| {
                // What pods outside the mesh send is readable.
                if !OUTSIDE.contains(&marker.from) {
                    let evidence = Evidence::Readable { at, marker };
                    shared.evidence.lock().unwrap().push(evidence);
                }
            })
        });
        let pollers = [0, 1].map(|node| {
            let (scene, shared, ended) = (scene.clone(), shared.clone(), ended.clone());
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    shared.poll(&scene, node);
                    std::thread::sleep(POLL_EVERY);
                }
            })
        });
        Self {
            shared,
            windows: Mutex::default(),
            ended,
            observers: Mutex::new(observers.into()),
            pollers: Mutex::new(pollers.into()),
        }
    }

    /// Notes the time of an action.
    pub fn during<T>(&self, action: &Action, perform: impl FnOnce() -> T) -> T {
        let begun = SystemTime::now();
        let result = perform();
        if let Some((pods, excuse)) = action.excuse() {
            self.windows.lock().unwrap().push(Window {
                pods,
                excuse,
                begun,
                ended: SystemTime::now(),
                what: action.to_string(),
            });
        }
        result
    }

    /// Reports evidence.
    pub fn report(&self, evidence: Evidence) {
        self.shared.evidence.lock().unwrap().push(evidence);
    }

    /// Stops observing and judges.
    pub fn verdict(&self) -> Verdict {
        self.ended.store(true, Ordering::Relaxed);
        self.pollers
            .lock()
            .unwrap()
            .drain(..)
            .for_each(|t| t.join().unwrap());
        let mut verdict = Verdict::default();
        for observer in self.observers.lock().unwrap().drain(..) {
            verdict.seen += observer.join().unwrap();
        }
        let polls = self.shared.polls.lock().unwrap();
        verdict.polls = polls[0].len() + polls[1].len();
        let windows = self.windows.lock().unwrap();
        let closed: Vec<_> = windows
            .iter()
            .map(|w| w.closings(&polls, w.settled()))
            .collect();
        for window in windows.iter().filter(|w| w.excuse == Excuse::NetAdmin) {
            let verified = window.closings(&polls, window.ended).into_iter().flatten();
            let after = verified.filter_map(|at| at.duration_since(window.ended).ok());
            verdict.verified_after.extend(after);
        }
        for evidence in self.shared.evidence.lock().unwrap().iter() {
            let excuse = excuse(evidence, &polls, &windows, &closed);
            match excuse {
                Some(excuse) => *verdict.excused.entry(excuse).or_default() += 1,
                None => verdict.violations.push(describe(evidence, &windows)),
            }
        }
        verdict
    }
}

fn excuse(
    evidence: &Evidence,
    polls: &[Vec<Poll>; PODS],
    windows: &[Window],
    closed: &[Vec<Option<SystemTime>>],
) -> Option<Excuse> {
    let (at, pods) = match evidence {
        Evidence::Readable { marker, .. } if marker.is_marked => return Some(Excuse::NetRaw),
        Evidence::Readable { at, marker } => (*at, vec![marker.from, marker.to]),
        Evidence::Accepted { at, marker } => (*at, vec![marker.to]),
    };
    let is_called_verified = |pod: &usize| {
        let (polls, before) = (&polls[*pod], |p: &Poll| p.answered <= at);
        let last = polls.iter().rev().find(|p| before(p));
        let next = polls.iter().find(|p| p.requested >= at);
        [last, next]
            .iter()
            .all(|p| p.is_some_and(|p| p.verified_at.is_some()))
    };
    let within = windows.iter().zip(closed).find_map(|(window, closings)| {
        let mut ends = window.pods.iter().zip(closings);
        let is_open = window.begun <= at
            && ends.any(|(pod, end)| pods.contains(pod) && end.is_none_or(|end| at <= end));
        is_open.then_some(window.excuse)
    });
    let is_verified = || pods.iter().all(is_called_verified);
    within.or_else(|| (!is_verified()).then_some(Excuse::NotVerified))
}

fn describe(evidence: &Evidence, windows: &[Window]) -> String {
    let (what, at, marker) = match evidence {
        Evidence::Readable { at, marker } => ("is readable", at, marker),
        Evidence::Accepted { at, marker } => ("was accepted from outside the mesh", at, marker),
    };
    let last = windows
        .iter()
        .rev()
        .find(|w| w.begun <= *at && (w.pods.contains(&marker.from) || w.pods.contains(&marker.to)));
    let last = last.map_or("no change in these pods before".to_owned(), |w| {
        let since = at.duration_since(w.ended).unwrap_or_default();
        format!("{since:?} after the last change in them ({})", w.what)
    });
    let (from, to) = (name(marker.from), name(marker.to));
    let age = at.duration_since(marker.opened()).unwrap_or_default();
    format!("data from {from} to {to} on a connection {age:?} old {what}, {last}")
}

impl Window {
    /// The time from which on a verification closes the window.
    fn settled(&self) -> SystemTime {
        match self.excuse {
            Excuse::Membership => self.ended + MEMBERSHIP_SETTLES,
            _ => self.ended + CHANGE_SETTLES,
        }
    }

    /// When each pod of the window was verified for the first time after `earliest`.
    fn closings(&self, polls: &[Vec<Poll>; PODS], earliest: SystemTime) -> Vec<Option<SystemTime>> {
        self.pods
            .iter()
            .map(|pod| {
                let verified = polls[*pod].iter().filter_map(|p| p.verified_at);
                verified.filter(|at| *at > earliest).min()
            })
            .collect()
    }
}

impl Shared {
    fn poll(&self, scene: &Scene, of: usize) {
        let requested = SystemTime::now();
        let status = scene.status(of);
        let answered = SystemTime::now();
        let mut polls = self.polls.lock().unwrap();
        for pod in (0..PODS).filter(|pod| node(*pod) == of) {
            let pods = status.iter().flat_map(|s| &s.pods);
            let verification = pods
                .filter(|p| p.name == name(pod))
                .find_map(|p| p.verification.as_ref())
                .filter(|v| v.state == VerificationState::Verified);
            // The age is that of the moment of the answer; the request was made before.
            let verified_at = verification.map(|v| requested - Duration::from_millis(v.for_ms));
            polls[pod].push(Poll {
                requested,
                answered,
                verified_at,
            });
        }
    }
}
