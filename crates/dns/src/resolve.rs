//! Name resolution for the proxy itself, for workloads with a host name instead of an address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mesh::Text;
use pod_socket::PodNetwork;
use tokio::time::timeout;

use crate::bounded_map::{CacheBudget, CacheLimits};
use crate::known_name::{FamilyAnswer, KnownName, LookupResult, NameLookup};
use crate::lookup_cache::LookupCache;
use crate::message::is_truncated;
use crate::query::{OWN_UDP_SIZE, Query};
use crate::validity::{MAX_TTL, negative_ttl};
use crate::{DEADLINE, forward, framing};

/// Limits on the names of one pod.
const LIMITS: CacheLimits = CacheLimits {
    entries: 256,
    bytes: 256 << 10,
};
/// Maximum number of aliases (CNAME) between a name and its addresses.
const MAX_ALIASES: usize = 16;

/// A cache of names and their addresses for one pod. It is not shared, because queries are sent
/// from within the pod, which may be able to forge the answers. Concurrent lookups of a name share
/// one query for each family.
#[derive(Debug)]
pub struct Resolver {
    upstreams: Arc<[SocketAddr]>,
    names: Arc<LookupCache<KnownName>>,
}

impl Resolver {
    /// Creates an empty cache that queries these name servers.
    pub fn new(upstreams: Vec<SocketAddr>, budget: Arc<CacheBudget>) -> Self {
        Self {
            upstreams: upstreams.into(),
            names: Arc::new(LookupCache::new(LIMITS, budget)),
        }
    }

    /// Resolves a name to one or more addresses. Queries are sent from within the pod.
    pub async fn resolve(&self, pod: &Arc<impl PodNetwork + 'static>, name: &Text) -> LookupResult {
        let look_up = || {
            let (pod, name, upstreams) = (pod.clone(), name.clone(), self.upstreams.clone());
            async move {
                let (v4, v6) = tokio::join!(
                    look_up(&pod, &name, RecordType::A, &upstreams),
                    look_up(&pod, &name, RecordType::AAAA, &upstreams)
                );
                let answers = [v4, v6];
                NameLookup { name, answers }
            }
        };
        let (result, _) = self.names.get(name, look_up).await;
        result.unwrap_or_else(|| Err(format!("{name}: the lookup was cancelled")))
    }
}

/// Queries name servers for one record type, one after the other until one has an answer; they
/// share the deadline equally.
async fn look_up(
    pod: &impl PodNetwork,
    name: &str,
    kind: RecordType,
    upstreams: &[SocketAddr],
) -> Result<FamilyAnswer, String> {
    let name =
        Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).map_err(|e| e.to_string())?;
    let question = Question::query(name, kind);
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(OWN_UDP_SIZE);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(|e| e.to_string())?;
    let query = Query::parse(&bytes).map_err(|_| "invalid host name".to_owned())?;
    let share = DEADLINE / u32::try_from(upstreams.len().max(1)).unwrap_or(u32::MAX);
    let mut reason = "no name server is configured".to_owned();
    for upstream in upstreams {
        match timeout(share, ask(pod, &query, *upstream)).await {
            Ok(Ok(answer)) => match addresses_in(&answer, &question) {
                Ok(found) => return Ok(found),
                Err(e) => reason = format!("{upstream}: {e}"),
            },
            Ok(Err(e)) => reason = format!("{upstream}: {e}"),
            Err(_) => reason = format!("{upstream}: no answer within {share:?}"),
        }
    }
    Err(reason)
}

/// Queries a name server over UDP, and over TCP if the answer is truncated.
async fn ask(pod: &impl PodNetwork, query: &Query, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let answer = forward::exchange(pod, query, upstream).await?;
    if !is_truncated(&answer) {
        return Ok(answer);
    }
    let id = rand::random();
    let mut stream = pod_socket::connect(pod, upstream).await?;
    framing::write(&mut stream, &query.with_id(id)).await?;
    let answer = framing::MessageReader::new(stream).next().await?;
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    if query.is_answered_by(&answer, id) {
        Ok(answer)
    } else {
        Err(io::Error::other("the answer is to another query"))
    }
}

/// Extracts the addresses that answer a question: those of its name, or of the name that its
/// aliases (CNAME) lead to. Other records are ignored, because a name server may add any.
pub(super) fn addresses_in(answer: &[u8], question: &Question) -> Result<FamilyAnswer, String> {
    let answer = Message::from_vec(answer).map_err(|e| e.to_string())?;
    // Without the question, an answer to another query of the same id would do.
    if answer.queries != [question.clone()] {
        return Err("the answer is to another question".to_owned());
    }
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(code.to_string()),
    }
    let (mut name, mut ttl) = (question.name().clone(), MAX_TTL);
    for _ in 0..=MAX_ALIASES {
        let of_name = |r: &&Record| r.name == name && r.dns_class == question.query_class();
        let records = || answer.answers.iter().filter(of_name);
        let addresses: Vec<IpAddr> = records()
            .filter(|r| r.record_type() == question.query_type())
            .filter_map(|r| match &r.data {
                RData::A(a) => Some(IpAddr::from(a.0)),
                RData::AAAA(a) => Some(IpAddr::from(a.0)),
                _ => None,
            })
            .collect();
        ttl = records()
            .map(|r| Duration::from_secs(r.ttl.into()))
            .fold(ttl, Duration::min);
        let alias = records().find_map(|r| match &r.data {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        match alias {
            Some(alias) if addresses.is_empty() => name = alias,
            _ => {
                if addresses.is_empty() {
                    ttl = ttl.min(negative_ttl(&answer));
                }
                return Ok(FamilyAnswer { addresses, ttl });
            }
        }
    }
    Err(format!("more than {MAX_ALIASES} aliases"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn address(of: &str, last: u8, ttl: u32) -> Record {
        Record::from_rdata(name(of), ttl, RData::A(A([192, 0, 2, last].into())))
    }

    fn alias(of: &str, to: &str) -> Record {
        Record::from_rdata(name(of), 60, RData::CNAME(CNAME(name(to))))
    }

    /// The addresses found for `a.example.` in an answer with these records.
    fn found(records: Vec<Record>) -> Result<(Vec<String>, u64), String> {
        let question = Question::query(name("a.example."), RecordType::A);
        let mut answer = Message::response(1, OpCode::Query);
        answer.add_query(question.clone());
        answer.add_answers(records);
        let found = addresses_in(&answer.to_vec().unwrap(), &question)?;
        let addresses = found.addresses.iter().map(ToString::to_string).collect();
        Ok((addresses, found.ttl.as_secs()))
    }

    #[test]
    fn an_answer_without_addresses_is_valid_for_the_ttl_of_its_zone() {
        let question = Question::query(name("a.example."), RecordType::A);
        let ttl = |code: ResponseCode, soa: Option<(u32, u32)>, records: Vec<Record>| {
            let mut answer = Message::response(1, OpCode::Query);
            answer.metadata.response_code = code;
            answer.add_query(question.clone());
            answer.add_answers(records);
            answer.add_authorities(soa.map(|(ttl, minimum)| {
                let soa = SOA::new(name("ns.example."), name("x.example."), 1, 2, 3, 4, minimum);
                Record::from_rdata(name("example."), ttl, RData::SOA(soa))
            }));
            let found = addresses_in(&answer.to_vec().unwrap(), &question).unwrap();
            assert_eq!(found.addresses, [] as [IpAddr; 0]);
            found.ttl.as_secs()
        };
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            assert_eq!(ttl(code, Some((50, 20)), vec![]), 20, "its minimum");
            assert_eq!(ttl(code, Some((10, 20)), vec![]), 10, "its own");
            assert_eq!(ttl(code, None, vec![]), 0, "without a SOA record");
            let alias = vec![alias("a.example.", "b.example.")];
            assert_eq!(ttl(code, Some((100, 100)), alias), 60, "that of the alias");
        }
        let mut failure = Message::response(1, OpCode::Query);
        failure.add_query(question.clone());
        for code in [ResponseCode::ServFail, ResponseCode::Refused] {
            failure.metadata.response_code = code;
            assert!(addresses_in(&failure.to_vec().unwrap(), &question).is_err());
        }
    }

    #[test]
    fn only_records_that_answer_the_question_are_used() {
        let one = |ttl| Ok((vec!["192.0.2.1".to_owned()], ttl));
        assert_eq!(found(vec![address("A.Example.", 1, 30)]), one(30));
        let stranger = address("bank.example.", 9, 1);
        assert_eq!(
            found(vec![stranger.clone(), address("a.example.", 1, 30)]),
            one(30)
        );
        assert_eq!(found(vec![stranger.clone()]), Ok((vec![], 0)));
        let chain = vec![
            address("c.example.", 1, 100),
            alias("b.example.", "c.example."),
            stranger,
            alias("a.example.", "b.example."),
        ];
        assert_eq!(found(chain), one(60));
        let endless = vec![alias("a.example.", "a.example.")];
        assert!(found(endless).is_err());
        let question = Question::query(name("a.example."), RecordType::A);
        let mut other = Message::response(1, OpCode::Query);
        other.add_answer(address("a.example.", 1, 30));
        let without_question = other.to_vec().unwrap();
        assert!(addresses_in(&without_question, &question).is_err());
        other.add_query(Question::query(name("b.example."), RecordType::A));
        assert!(addresses_in(&other.to_vec().unwrap(), &question).is_err());
    }
}
