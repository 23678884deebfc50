//! Writes Kubernetes Events of pods. Repeated events increment a count, and writes are
//! rate-limited.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ::kubernetes::{
    Api, Client, Event, EventSource, ObjectMeta, ObjectReference, Patch, PatchParams, PostParams,
    status_of,
};
use error_code::ErrorCode;
use handoff::PodRef;
use pod_life::Refusal;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Limit of distinct events in memory; the least recent one is evicted.
const MAX_EVENTS: usize = 512;
/// Minimum interval between writes of the same event.
const UPDATE_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before an event is written again after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between writes of all events, after an initial burst.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
const BURST: u32 = 20;
/// Time limit of a request to the API server.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of a message, imposed by the API server.
const MAX_MESSAGE_LEN: usize = 1024;

/// Records events, and holds those to be written.
#[derive(Debug)]
pub(crate) struct EventRecorder {
    node: String,
    entries: RefCell<HashMap<EventKey, EventEntry>>,
    recorded: Notify,
}

/// Identity of an event: those with the same pod, reason and code are aggregated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EventKey {
    pod: PodRef,
    reason: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone)]
struct EventEntry {
    message: String,
    count: u32,
    first: String,
    last: String,
    /// Name of the written object; empty if the API server rejected it.
    name: Option<String>,
    /// The count that was last written.
    written: u32,
    not_before: Option<Instant>,
    recorded_at: Instant,
}

impl EventRecorder {
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            entries: RefCell::default(),
            recorded: Notify::new(),
        }
    }

    /// Records that a pod could not be enrolled.
    pub(crate) fn not_enrolled(&self, pod: &PodRef, refusal: &Refusal) {
        self.failed(pod, "MeshEnrolmentFailed", refusal.code, &refusal.why);
    }

    /// Records that an enrolled pod could not be verified.
    pub(crate) fn not_verified(&self, pod: &PodRef, why: &str) {
        self.failed(
            pod,
            "MeshVerificationFailed",
            &error_code::agent::NOT_VERIFIED,
            why,
        );
    }

    /// Records that a pod's redirection was changed and repaired.
    pub(crate) fn repaired(&self, pod: &PodRef, what: &str, by: &str) {
        let code = &error_code::agent::RULES_DIFFER;
        let message = format!(
            "{code}: repaired redirection rules that were changed by {by}: {what}. \
             Next step: Find out why they were changed; the pod needs no action."
        );
        self.record(pod, "MeshRedirectionRepaired", code, message);
    }

    /// Records that a pod of the mesh started outside it.
    pub(crate) fn started_outside(&self, pod: &PodRef, code: &'static ErrorCode, why: &str) {
        self.failed(pod, "MeshStartedOutside", code, why);
    }

    fn failed(&self, pod: &PodRef, reason: &'static str, code: &'static ErrorCode, why: &str) {
        let message = format!(
            "{code}: {why}. Cause: {} Next step: {}",
            code.cause, code.next_step
        );
        self.record(pod, reason, code, message);
    }

    fn record(&self, pod: &PodRef, reason: &'static str, code: &ErrorCode, mut message: String) {
        let key = EventKey {
            pod: pod.clone(),
            reason,
            code: code.code,
        };
        let mut len = message.len().min(MAX_MESSAGE_LEN);
        while !message.is_char_boundary(len) {
            len -= 1;
        }
        message.truncate(len);
        let mut entries = self.entries.borrow_mut();
        let (now, at) = (::kubernetes::now(), Instant::now());
        if let Some(entry) = entries.get_mut(&key) {
            entry.count = entry.count.saturating_add(1);
            entry.message = message;
            entry.last = now;
            entry.recorded_at = at;
        } else {
            let oldest = || entries.iter().min_by_key(|(_, e)| e.recorded_at);
            if entries.len() >= MAX_EVENTS
                && let Some(oldest) = oldest().map(|(key, _)| key.clone())
            {
                entries.remove(&oldest);
            }
            let new = EventEntry {
                message,
                count: 1,
                first: now.clone(),
                last: now,
                name: None,
                written: 0,
                not_before: None,
                recorded_at: at,
            };
            entries.insert(key, new);
        }
        self.recorded.notify_one();
    }

    /// Returns an event to write now, or the time until one is due.
    fn due(&self) -> (Option<(EventKey, EventEntry)>, Option<Duration>) {
        let entries = self.entries.borrow();
        let now = Instant::now();
        let wait = |e: &EventEntry| {
            e.not_before
                .map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
        };
        let next = entries
            .iter()
            .filter(|(_, e)| e.count > e.written)
            .min_by_key(|(_, e)| wait(e));
        match next {
            Some((key, e)) if wait(e).is_zero() => (Some((key.clone(), e.clone())), None),
            Some((_, e)) => (None, Some(wait(e))),
            None => (None, None),
        }
    }

    fn set_written(&self, key: &EventKey, count: u32, name: Option<String>) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(key) {
            let delay = if name.is_some() {
                UPDATE_INTERVAL
            } else {
                RETRY_INTERVAL
            };
            entry.not_before = Some(Instant::now() + delay);
            if name.is_some() {
                entry.name = name;
                entry.written = count;
            }
        }
    }
}

/// Writes recorded events, forever.
pub(super) async fn run(client: Client, events: Rc<EventRecorder>) {
    let mut limiter = RateLimiter::new(Instant::now());
    loop {
        match events.due() {
            (Some((key, entry)), _) => match limiter.take(Instant::now()) {
                Ok(()) => {
                    let name = write(&client, &events.node, &key, &entry).await;
                    events.set_written(&key, entry.count, name);
                }
                // Events recorded in the meantime increment counts.
                Err(wait) => sleep(wait).await,
            },
            (None, wait) => tokio::select! {
                () = events.recorded.notified() => {}
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            },
        }
    }
}

/// Limits the rate of writes, with a token bucket.
struct RateLimiter {
    left: u32,
    refilled: Instant,
}

impl RateLimiter {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
        }
    }

    /// Takes a token, or returns how long to wait for one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.refilled);
        let new = u32::try_from(since.as_millis() / WRITE_INTERVAL.as_millis()).unwrap_or(BURST);
        if new > 0 {
            self.left = self.left.saturating_add(new).min(BURST);
            self.refilled = now;
        }
        if self.left == 0 {
            return Err(WRITE_INTERVAL.saturating_sub(since));
        }
        self.left -= 1;
        Ok(())
    }
}

/// Writes an event. Returns its name, which is empty if the API server rejected it, or `None` if it
/// should be retried.
async fn write(client: &Client, node: &str, key: &EventKey, entry: &EventEntry) -> Option<String> {
    let api: Api<Event> = Api::namespaced(client.clone(), &key.pod.namespace);
    let written = async {
        if let Some(name) = entry.name.as_ref().filter(|name| !name.is_empty()) {
            let change = json!({
                "count": entry.count,
                "lastTimestamp": entry.last,
                "message": entry.message,
            });
            match api
                .patch(name, &PatchParams::default(), &Patch::Merge(&change))
                .await
            {
                Err(e) if status_of(&e) == Some(404) => {} // expired, by default after an hour
                result => return result,
            }
        }
        api.create(&PostParams::default(), &event(node, key, entry))
            .await
    };
    match timeout(API_TIMEOUT, written).await {
        Ok(Ok(event)) => event.metadata.name,
        // Permanent, e.g. in a terminating namespace.
        Ok(Err(e)) if matches!(status_of(&e), Some(400..=499)) => {
            let PodRef {
                namespace, name, ..
            } = &key.pod;
            tracing::warn!(
                namespace,
                name,
                "the API server rejected an Event of the pod: {e}"
            );
            Some(String::new())
        }
        Ok(Err(e)) => {
            tracing::warn!("cannot write an Event, retrying: {e}");
            None
        }
        Err(_) => None,
    }
}

fn event(node: &str, key: &EventKey, entry: &EventEntry) -> Event {
    let PodRef {
        namespace,
        name,
        uid,
    } = &key.pod;
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
        message: entry.message.clone(),
        kind: kind(key).to_owned(),
        source: EventSource {
            component: "underpass-agent".to_owned(),
            host: node.to_owned(),
        },
        first_timestamp: Some(entry.first.clone()),
        last_timestamp: Some(entry.last.clone()),
        count: entry.count,
    }
}

/// Whether a person should act.
fn kind(key: &EventKey) -> &'static str {
    if key.code == error_code::agent::STARTED_BEFORE_AGENT.code {
        "Normal"
    } else {
        "Warning"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_write_for_each_interval() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        assert!((0..BURST).all(|_| limiter.take(start).is_ok()));
        let early = start + Duration::from_millis(200);
        assert_eq!(limiter.take(early), Err(Duration::from_millis(300)));
        assert_eq!(limiter.take(start + WRITE_INTERVAL), Ok(()));
        assert_eq!(limiter.take(start + WRITE_INTERVAL), Err(WRITE_INTERVAL));
        let later = start + WRITE_INTERVAL * 1000;
        assert!(
            (0..BURST).all(|_| limiter.take(later).is_ok()),
            "never more than a burst"
        );
        assert!(limiter.take(later).is_err());
    }
}
