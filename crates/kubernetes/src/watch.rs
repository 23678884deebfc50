//! Following all objects of a kind for as long as the program runs.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Config, Event, InitialListStrategy};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// How long a watch may last until it is asked for again; a connection that broke silently is noticed after as much.
const WATCH_SECONDS: u32 = 120;
/// After an error, a watch is asked for again this soon, and less often the longer it lasts.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Which objects of a kind are followed.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Such as `spec.nodeName=a`; all when it is empty.
    pub fields: String,
    /// Such as `app=b`; all when it is empty.
    pub labels: String,
}

/// What a watch tells.
#[derive(Debug)]
pub enum Change<K> {
    /// These are all that there are: at the beginning, and whenever changes may have been missed.
    All(Vec<K>),
    /// This one is there now, or has changed.
    Put(K),
    /// This one has gone.
    Gone(K),
    /// Nothing is heard of the API server, for this reason. What was told before may be old; it is asked again.
    Lost(String),
}

/// Tells all objects and then every change, without end. The list comes as a stream, so that it is never in memory as a
/// whole text; from servers that do not stream lists, in pages.
pub async fn follow<K>(api: Api<K>, selection: &Selection, mut tell: impl FnMut(Change<K>))
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let asked = config(selection, strategy.clone());
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), asked));
        let (mut listed, mut listing, mut retry) = (Vec::new(), true, FIRST_RETRY);
        loop {
            let heard = match stream.next().await {
                Some(Ok(heard)) => heard,
                Some(Err(e)) if listing && strategy == InitialListStrategy::StreamingList && is_answer(&e) => {
                    tracing::info!("the API server does not stream this list, which is asked for in pages: {e}");
                    strategy = InitialListStrategy::ListWatch;
                    break;
                }
                Some(Err(e)) => {
                    if !is_routine(&e) {
                        tell(Change::Lost(e.to_string()));
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(LAST_RETRY);
                    }
                    continue;
                }
                None => break, // never: a watch has no end
            };
            match heard {
                Event::Init => {
                    listed.clear();
                    listing = true;
                }
                Event::InitApply(object) => listed.push(object),
                Event::InitDone => {
                    (listing, retry) = (false, FIRST_RETRY);
                    tell(Change::All(std::mem::take(&mut listed)));
                }
                Event::Apply(object) => {
                    retry = FIRST_RETRY;
                    tell(Change::Put(object));
                }
                Event::Delete(object) => tell(Change::Gone(object)),
            }
        }
    }
}

fn config(selection: &Selection, strategy: InitialListStrategy) -> Config {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Config {
        field_selector: some(&selection.fields),
        label_selector: some(&selection.labels),
        timeout: Some(WATCH_SECONDS),
        initial_list_strategy: strategy,
        ..Config::default()
    }
}

/// Whether the server itself refuses. It does so in many ways when it does not stream lists: as a bad request when it knows
/// no such option, and within the stream when its etcd (before 3.4.25) cannot tell how far a watch has come.
fn is_answer(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(_) | watcher::Error::WatchStartFailed(kube::Error::Api(_)))
}

/// Whether it only says that the watch has to begin again, which the stream does by itself.
fn is_routine(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}
