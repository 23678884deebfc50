//! Watches all objects of a kind, reconnecting as needed.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Config, Event, InitialListStrategy, ListSemantic};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::retry::Backoff;
use crate::streaming::is_unsupported;

/// Duration of a watch request in seconds, after which it is repeated. Chosen at random, so that
/// the agents of a cluster do not renew their watches at the same time.
const WATCH_SECONDS: RangeInclusive<u32> = 300..=600;

/// Selects the objects to watch.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    /// Field selector, e.g. `spec.nodeName=a`; empty selects all.
    pub fields: String,
    /// Label selector, e.g. `app=b`; empty selects all.
    pub labels: String,
}

/// An event of a watch.
#[derive(Debug)]
pub enum WatchEvent<K> {
    /// The complete list of objects: initially, and whenever changes may have been missed.
    Listed(Vec<K>),
    /// An object was created or changed.
    Applied(K),
    /// An object was deleted.
    Deleted(K),
    /// The watch failed for this reason, and is retried. Earlier events may be outdated.
    Interrupted(String),
}

/// Passes the list of all objects, and then every change, to `handle`, forever. The list is
/// streamed, so that its text is never in memory as a whole, or fetched in one response if the API
/// server does not stream lists.
pub async fn watch<K>(api: Api<K>, selector: &Selector, mut handle: impl FnMut(WatchEvent<K>))
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let config = config(
            selector,
            strategy.clone(),
            rand::random_range(WATCH_SECONDS),
        );
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), config));
        let (mut listed, mut listing, mut backoff) = (Vec::new(), true, Backoff::new());
        loop {
            let event = match stream.next().await {
                Some(Ok(event)) => event,
                Some(Err(e))
                    if listing
                        && strategy == InitialListStrategy::StreamingList
                        && is_unsupported(&e) =>
                {
                    tracing::info!(
                        event = "list_not_streamed",
                        "falling back to lists in one response: cannot stream a list: {e}"
                    );
                    strategy = InitialListStrategy::ListWatch;
                    break;
                }
                Some(Err(e)) if is_expired_at_start(&e) => {
                    tokio::time::sleep(backoff.next(rand::random())).await;
                    break;
                }
                Some(Err(e)) => {
                    if is_expired(&e) {
                        listing = true;
                    } else {
                        handle(WatchEvent::Interrupted(e.to_string()));
                        tokio::time::sleep(backoff.next(rand::random())).await;
                    }
                    continue;
                }
                None => break, // unreachable: the stream has no end
            };
            match event {
                Event::Init => {
                    listed.clear();
                    listing = true;
                }
                Event::InitApply(object) => listed.push(object),
                Event::InitDone => {
                    listing = false;
                    backoff = Backoff::new();
                    handle(WatchEvent::Listed(std::mem::take(&mut listed)));
                }
                Event::Apply(object) => {
                    backoff = Backoff::new();
                    handle(WatchEvent::Applied(object));
                }
                Event::Delete(object) => handle(WatchEvent::Deleted(object)),
            }
        }
    }
}

fn config(selector: &Selector, strategy: InitialListStrategy, seconds: u32) -> Config {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Config {
        field_selector: some(&selector.fields),
        label_selector: some(&selector.labels),
        timeout: Some(seconds),
        // From the API server's watch cache, which has no pages: a quorum read would load etcd.
        list_semantic: ListSemantic::Any,
        page_size: None,
        initial_list_strategy: strategy,
        ..Config::default()
    }
}

/// Whether the watch expired and must restart, which the stream does by itself.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// Whether the API server rejects the version from which a watch is to continue. The stream would
/// repeat the request with the same version for ever, so it must be replaced.
fn is_expired_at_start(error: &watcher::Error) -> bool {
    let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error else {
        return false;
    };
    status.code == 410
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_watch_whose_version_has_expired_starts_anew() {
        let status = |code| {
            Box::new(Status {
                code,
                ..Status::default()
            })
        };
        let at_start = |code| watcher::Error::WatchStartFailed(kube::Error::Api(status(code)));
        let in_stream = |code| watcher::Error::WatchError(status(code));
        let judged = |e: &watcher::Error| (is_expired(e), is_expired_at_start(e));
        assert_eq!(judged(&in_stream(410)), (true, false));
        assert_eq!(judged(&at_start(410)), (false, true));
        assert_eq!(judged(&at_start(403)), (false, false));
        assert_eq!(judged(&in_stream(500)), (false, false));
    }
}
