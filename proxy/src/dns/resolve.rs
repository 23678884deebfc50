//! Looking up a name for the proxy itself: for workloads that have a name and no address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use mesh::Text;
use tokio::sync::watch;

use super::forward;
use super::query::Query;
use crate::inpod::Pod;

/// Names that are remembered at most.
const REMEMBERED: usize = 4096;
/// An answer is remembered for as long as it says, within these bounds.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

type Answer = Result<Arc<[IpAddr]>, String>;

/// Names and their addresses, for all pods of a node. Whoever asks while somebody else does waits for the same answer.
#[derive(Debug)]
pub(crate) struct Resolver {
    upstreams: Vec<SocketAddr>,
    names: Mutex<HashMap<Text, Entry>>,
}

#[derive(Debug)]
enum Entry {
    Known(Answer, Instant),
    Asked(watch::Receiver<Option<Answer>>),
}

impl Resolver {
    pub(super) fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, names: Mutex::default() }
    }

    /// The addresses of a name, never none. Name servers are asked from within the pod.
    pub(crate) async fn resolve(self: &Arc<Self>, pod: &Arc<Pod>, name: &Text) -> Answer {
        let mut asked = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            match names.get(name.as_str()) {
                Some(Entry::Known(answer, until)) if Instant::now() < *until => return answer.clone(),
                Some(Entry::Asked(asked)) if asked.has_changed().is_ok() => asked.clone(),
                _ => {
                    make_room(&mut names);
                    let asked = self.clone().ask(pod.clone(), name.clone());
                    names.insert(name.clone(), Entry::Asked(asked.clone()));
                    asked
                }
            }
        };
        match asked.wait_for(Option::is_some).await.map(|answer| answer.clone()) {
            Ok(Some(answer)) => answer,
            _ => Err(format!("{name}: whoever asked has ended")),
        }
    }

    /// In a task of its own, so that it outlives the connection that asked first.
    fn ask(self: Arc<Self>, pod: Arc<Pod>, name: Text) -> watch::Receiver<Option<Answer>> {
        let (done, asked) = watch::channel(None);
        tokio::task::spawn_local(async move {
            let (v4, v6) = tokio::join!(
                look_up(&pod, &name, RecordType::A, &self.upstreams),
                look_up(&pod, &name, RecordType::AAAA, &self.upstreams)
            );
            let (answer, keep) = match (v4, v6) {
                (Err(why), Err(_)) => (Err(format!("{name}: {why}")), SHORTEST),
                (v4, v6) => {
                    let both = [v4, v6].into_iter().flatten();
                    let (addresses, keep) = both.fold((Vec::new(), LONGEST), |(mut all, keep), (some, ttl)| {
                        all.extend(some);
                        (all, keep.min(ttl))
                    });
                    match addresses.is_empty() {
                        true => (Err(format!("{name} has no address")), SHORTEST),
                        false => (Ok(addresses.into()), keep),
                    }
                }
            };
            let known = Entry::Known(answer.clone(), Instant::now() + keep.clamp(SHORTEST, LONGEST));
            self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name, known);
            let _ = done.send(Some(answer)); // whoever asked has given up
        });
        asked
    }
}

/// What has been remembered for too long goes first, then anything.
fn make_room(names: &mut HashMap<Text, Entry>) {
    if names.len() < REMEMBERED {
        return;
    }
    let now = Instant::now();
    names.retain(|_, entry| !matches!(entry, Entry::Known(_, until) if *until <= now));
    while names.len() >= REMEMBERED {
        let Some(any) = names.keys().next().cloned() else { return };
        names.remove(any.as_str());
    }
}

async fn look_up(
    pod: &Pod,
    name: &str,
    kind: RecordType,
    upstreams: &[SocketAddr],
) -> Result<(Vec<IpAddr>, Duration), String> {
    let question = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).map_err(|e| e.to_string())?;
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(question, kind));
    let bytes = message.to_vec().map_err(|e| e.to_string())?;
    let query = Query::parse(&bytes).map_err(|_| "no query can be made of it".to_owned())?;
    let (answer, from) = forward::ask(pod, &query, upstreams).await?;
    let answer = Message::from_vec(&answer).map_err(|e| format!("{from}: {e}"))?;
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok((Vec::new(), LONGEST)),
        code => return Err(format!("{from}: {code}")),
    }
    let mut keep = LONGEST;
    let addresses = answer.answers.iter().filter_map(|record| {
        keep = keep.min(Duration::from_secs(record.ttl.into()));
        match &record.data {
            RData::A(a) => Some(IpAddr::from(a.0)),
            RData::AAAA(a) => Some(IpAddr::from(a.0)),
            _ => None,
        }
    });
    Ok((addresses.collect(), keep))
}
