//! What happens to a pod, where people look for it: as Events of the pod. The same again raises a count, and however much
//! happens, little is written.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ::kubernetes::{Api, Event, EventSource, ObjectMeta, ObjectReference, Patch, PatchParams, PostParams, status_of};
use error_code::ErrorCode;
use handoff::PodRef;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::facts::Cluster;
use crate::refusal::Refusal;

/// Different happenings that are kept; the one that was told last the longest ago makes room.
const KEPT: usize = 512;
/// The same happening is written at most this often.
const SAME: Duration = Duration::from_secs(5);
/// One that could not be written is written again this soon.
const AGAIN: Duration = Duration::from_secs(1);
/// All of them together at most this often, but for a few at once.
const EACH: Duration = Duration::from_millis(500);
const BURST: u32 = 20;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The API server takes no longer messages.
const LONGEST: usize = 1024;

/// What is to be told.
#[derive(Debug)]
pub(crate) struct Events {
    node: String,
    told: RefCell<HashMap<Key, Told>>,
    something: Notify,
}

/// Happenings are the same when pod, reason and code are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    pod: PodRef,
    reason: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone)]
struct Told {
    message: String,
    count: u32,
    first: String,
    last: String,
    /// The event's name, once it was written.
    name: Option<String>,
    /// How often it had happened when it was written.
    written: u32,
    not_before: Option<Instant>,
    happened_at: Instant,
}

impl Events {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), told: RefCell::default(), something: Notify::new() }
    }

    /// A pod could not be enrolled.
    pub(crate) fn not_enrolled(&self, pod: &PodRef, refusal: &Refusal) {
        self.failed(pod, "MeshEnrolmentFailed", refusal.code(), &refusal.to_string());
    }

    /// A pod that is enrolled is not verified.
    pub(crate) fn not_verified(&self, pod: &PodRef, why: &str) {
        self.failed(pod, "MeshVerificationFailed", &error_code::agent::NOT_VERIFIED, why);
    }

    /// Somebody had changed a pod's redirection.
    pub(crate) fn repaired(&self, pod: &PodRef, what: &str, by: &str) {
        let code = &error_code::agent::NOT_AS_PLANNED;
        let next = "Find out who changed it; the pod is as it should be again.";
        let message = format!("{code}: redirection was changed by {by} ({what}) and is repaired. Next step: {next}");
        self.happened(Key { pod: pod.clone(), reason: "MeshRedirectionRepaired", code: code.code }, message);
    }

    fn failed(&self, pod: &PodRef, reason: &'static str, code: &'static ErrorCode, why: &str) {
        let message = format!("{code}: {why}. Cause: {} Next step: {}", code.cause, code.next_step);
        self.happened(Key { pod: pod.clone(), reason, code: code.code }, message);
    }

    fn happened(&self, key: Key, mut message: String) {
        let mut longest = message.len().min(LONGEST);
        while !message.is_char_boundary(longest) {
            longest -= 1;
        }
        message.truncate(longest);
        let mut told = self.told.borrow_mut();
        let (now, at) = (::kubernetes::now(), Instant::now());
        if let Some(known) = told.get_mut(&key) {
            known.count = known.count.saturating_add(1);
            (known.message, known.last, known.happened_at) = (message, now, at);
        } else {
            if told.len() >= KEPT
                && let Some(oldest) = told.iter().min_by_key(|(_, t)| t.happened_at).map(|(key, _)| key.clone())
            {
                told.remove(&oldest);
            }
            let new = Told {
                message,
                count: 1,
                first: now.clone(),
                last: now,
                name: None,
                written: 0,
                not_before: None,
                happened_at: at,
            };
            told.insert(key, new);
        }
        self.something.notify_one();
    }

    /// One that is to be written now, and how long it is until another one is.
    fn due(&self) -> (Option<(Key, Told)>, Option<Duration>) {
        let told = self.told.borrow();
        let now = Instant::now();
        let wait = |t: &Told| t.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let next = told.iter().filter(|(_, t)| t.count > t.written).min_by_key(|(_, t)| wait(t));
        match next {
            Some((key, t)) if wait(t).is_zero() => (Some((key.clone(), t.clone())), None),
            Some((_, t)) => (None, Some(wait(t))),
            None => (None, None),
        }
    }

    fn written(&self, key: &Key, count: u32, name: Option<String>) {
        if let Some(told) = self.told.borrow_mut().get_mut(key) {
            told.not_before = Some(Instant::now() + if name.is_some() { SAME } else { AGAIN });
            if name.is_some() {
                (told.name, told.written) = (name, count);
            }
        }
    }
}

/// Writes what happens, for as long as the agent lives.
pub(super) async fn keep(cluster: Rc<Cluster>) {
    let events = &cluster.events;
    let mut allowance = Allowance::new(Instant::now());
    loop {
        match events.due() {
            (Some((key, told)), _) => match allowance.take(Instant::now()) {
                Ok(()) => {
                    let name = write(&cluster, &key, &told).await;
                    events.written(&key, told.count, name);
                }
                // What happens meanwhile is only counted.
                Err(wait) => sleep(wait).await,
            },
            (None, wait) => tokio::select! {
                () = events.something.notified() => {}
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            },
        }
    }
}

/// How many may be written now.
struct Allowance {
    left: u32,
    refilled: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: BURST, refilled: now }
    }

    /// Takes one, or says when there will be one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.refilled);
        let new = u32::try_from(since.as_millis() / EACH.as_millis()).unwrap_or(BURST);
        if new > 0 {
            (self.left, self.refilled) = (self.left.saturating_add(new).min(BURST), now);
        }
        if self.left == 0 {
            return Err(EACH.saturating_sub(since));
        }
        self.left -= 1;
        Ok(())
    }
}

/// Writes one; returns its name, unless it could not be written.
async fn write(cluster: &Cluster, key: &Key, told: &Told) -> Option<String> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &key.pod.namespace);
    let written = async {
        if let Some(name) = told.name.as_ref().filter(|name| !name.is_empty()) {
            let change = json!({ "count": told.count, "lastTimestamp": told.last, "message": told.message });
            match api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await {
                Err(e) if status_of(&e) == Some(404) => {} // an hour has passed
                done => return done,
            }
        }
        api.create(&PostParams::default(), &event(cluster, key, told)).await
    };
    match timeout(PATIENCE, written).await {
        Ok(Ok(event)) => event.metadata.name,
        // Refused for good, such as in a namespace that ends.
        Ok(Err(e)) if matches!(status_of(&e), Some(400..=499)) => {
            tracing::warn!(namespace = key.pod.namespace, name = key.pod.name, "an Event of the pod is refused: {e}");
            Some(String::new())
        }
        Ok(Err(e)) => {
            tracing::warn!("an Event cannot be written yet: {e}");
            None
        }
        Err(_) => None,
    }
}

fn event(cluster: &Cluster, key: &Key, told: &Told) -> Event {
    let PodRef { namespace, name, uid } = &key.pod;
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}.", name.chars().take(200).collect::<String>())),
        namespace: Some(namespace.clone()),
        ..ObjectMeta::default()
    };
    Event {
        metadata,
        involved_object: ObjectReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone().unwrap_or_default(),
        },
        reason: key.reason.to_owned(),
        message: told.message.clone(),
        kind: "Warning".to_owned(),
        source: EventSource { component: "underpass-agent".to_owned(), host: cluster.events.node.clone() },
        first_timestamp: Some(told.first.clone()),
        last_timestamp: Some(told.last.clone()),
        count: told.count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_once_and_then_one_after_the_other() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert!((0..BURST).all(|_| allowance.take(start).is_ok()));
        assert_eq!(allowance.take(start + Duration::from_millis(200)), Err(Duration::from_millis(300)));
        assert_eq!(allowance.take(start + EACH), Ok(()));
        assert_eq!(allowance.take(start + EACH), Err(EACH));
        let later = start + EACH * 1000;
        assert!((0..BURST).all(|_| allowance.take(later).is_ok()), "never more than a burst");
        assert!(allowance.take(later).is_err());
    }
}
