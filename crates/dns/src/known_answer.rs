//! What is known from a name server's answers to one query: the last one, kept as it was received,
//! and that the last attempt failed. No I/O.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::answer_cache::AnswerKey;
use crate::lookup_cache::Knowledge;
use crate::message::{RecordPlace, Section, is_truncated, questions, records, response_code};
use crate::query::Query;
use crate::validity::{STALE_TTL, Validity, negative_ttl, next_attempt};

/// The answer of a name server.
#[derive(Debug)]
pub(super) struct UpstreamAnswer {
    pub(super) from: SocketAddr,
    bytes: Vec<u8>,
    /// Its records, except EDNS.
    records: Vec<RecordPlace>,
    /// Whether it says what exists, or else only that the name server failed.
    is_conclusive: bool,
    /// How long it may be used for other queries; `None` if not at all.
    ttl: Option<Duration>,
}

/// An answer for the clients of a query.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) answer: Arc<UpstreamAnswer>,
    age: Age,
}

/// How an answer's TTLs are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// They are those of the name server.
    New,
    /// They are reduced by the time since the answer was received.
    Cached(Duration),
    /// They have expired.
    Stale,
}

impl UpstreamAnswer {
    /// Reads an answer to this query. Answers without records of the queried type are used for at
    /// most `max_negative`.
    pub(super) fn new(
        query: &Query,
        bytes: Vec<u8>,
        from: SocketAddr,
        max_negative: Duration,
    ) -> Self {
        let mut records = records(&bytes).unwrap_or_default();
        let is_edns = |record: &RecordPlace| record.kind == RecordType::OPT;
        // The first byte of its TTL extends the response code, RFC 6891 section 6.1.3.
        let extends_code = |r: &RecordPlace| is_edns(r) && r.ttl_in(&bytes) >> 24 != 0;
        let is_conclusive = matches!(
            response_code(&bytes),
            ResponseCode::NoError | ResponseCode::NXDomain
        ) && !records.iter().any(extends_code);
        records.retain(|record| !is_edns(record));
        let is_whole = is_conclusive && !is_truncated(&bytes) && questions(&bytes) == 1;
        let ttl = is_whole
            .then(|| lifetime(query, &bytes, &records, max_negative))
            .flatten();
        Self {
            from,
            bytes,
            records,
            is_conclusive,
            ttl,
        }
    }

    /// Where the addresses are that a client may choose from, if there are several: data of the
    /// same length. Their order does not matter (RFC 2181 section 5).
    fn interchangeable(&self) -> Vec<Range<usize>> {
        let is_address = |r: &&RecordPlace| {
            r.section == Section::Answer && matches!(r.kind, RecordType::A | RecordType::AAAA)
        };
        let addresses = || self.records.iter().filter(is_address);
        let Some(first) = addresses().next() else {
            return Vec::new();
        };
        let like_first = |r: &RecordPlace| {
            r.data.len() == first.data.len()
                && self.bytes[r.name.clone()] == self.bytes[first.name.clone()]
                && r.ttl_in(&self.bytes) == first.ttl_in(&self.bytes)
        };
        if !addresses().all(like_first) {
            return Vec::new();
        }
        addresses().map(|r| r.data.clone()).collect()
    }
}

/// How long an answer may be used for other queries: until the first of its records expires, and as
/// in RFC 2308 if it has none of the queried type. `None` if not at all.
fn lifetime(
    query: &Query,
    bytes: &[u8],
    records: &[RecordPlace],
    max_negative: Duration,
) -> Option<Duration> {
    let kind = query.question.as_ref()?.query_type();
    let shortest = records.iter().map(|record| record.ttl_in(bytes)).min()?;
    let shortest = Duration::from_secs(shortest.into());
    let is_answer = |r: &RecordPlace| r.section == Section::Answer && r.kind == kind;
    let exists = response_code(bytes) == ResponseCode::NoError && records.iter().any(is_answer);
    let ttl = if exists {
        shortest
    } else {
        let of_zone = negative_ttl(&Message::from_vec(bytes).ok()?);
        shortest.min(of_zone).min(max_negative)
    };
    (!ttl.is_zero()).then_some(ttl)
}

impl Reply {
    /// The answer as the name server sent it.
    pub(super) fn new(answer: Arc<UpstreamAnswer>) -> Self {
        let age = Age::New;
        Self { answer, age }
    }

    /// Whether the answer has expired.
    pub(super) fn is_stale(&self) -> bool {
        self.age == Age::Stale
    }

    /// The bytes of the answer to this query, which is equal to the one that was looked up.
    pub(super) fn to(&self, query: &Query) -> Vec<u8> {
        let mut bytes = self.answer.bytes.clone();
        query.adopt(&mut bytes);
        for record in &self.answer.records {
            let ttl = self.age.applied(record.ttl_in(&bytes));
            bytes[record.ttl()].copy_from_slice(&ttl.to_be_bytes());
        }
        bytes
    }

    /// Like [`Self::to`], with the addresses rotated by `random`, so that clients that use the
    /// first one do not all use the same.
    pub(super) fn rotated(&self, query: &Query, random: usize) -> Vec<u8> {
        let mut bytes = self.to(query);
        let places = self.answer.interchangeable();
        let first = random.checked_rem(places.len()).unwrap_or(0);
        let from = places.iter().cycle().skip(first);
        for (to, from) in places.iter().zip(from) {
            bytes[to.clone()].copy_from_slice(&self.answer.bytes[from.clone()]);
        }
        bytes
    }
}

impl Age {
    /// The TTL to show for a TTL of the name server, in seconds.
    fn applied(self, ttl: u32) -> u32 {
        match self {
            Self::New => ttl,
            Self::Cached(age) => {
                ttl.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX))
            }
            Self::Stale => u32::try_from(STALE_TTL.as_secs()).unwrap_or(u32::MAX),
        }
    }
}

/// What is known of the answer to one query.
#[derive(Debug, Default)]
pub(super) struct KnownAnswer {
    last: Option<LastAnswer>,
    /// What to answer until when, because the last attempt failed.
    failure: Option<(Result<Reply, String>, Instant)>,
}

#[derive(Debug)]
struct LastAnswer {
    answer: Arc<UpstreamAnswer>,
    received: Instant,
    validity: Validity,
}

impl Knowledge for KnownAnswer {
    type Key = AnswerKey;
    type Outcome = Result<UpstreamAnswer, String>;
    type Answer = Result<Reply, String>;

    fn valid(&self, now: Instant) -> Option<Self::Answer> {
        if let Some(last) = self.last.as_ref().filter(|l| l.validity.is_valid(now)) {
            let age = Age::Cached(now.saturating_duration_since(last.received));
            let answer = last.answer.clone();
            return Some(Ok(Reply { answer, age }));
        }
        let (answer, until) = self.failure.as_ref()?;
        (now < *until).then(|| answer.clone())
    }

    fn stale(&self, now: Instant) -> Option<Self::Answer> {
        let last = self.last.as_ref().filter(|l| l.validity.is_usable(now))?;
        let (answer, age) = (last.answer.clone(), Age::Stale);
        Some(Ok(Reply { answer, age }))
    }

    /// Any other response code than that a name exists or not is a failure (RFC 8767 section 5).
    fn record(&mut self, outcome: Self::Outcome, now: Instant) -> Self::Answer {
        let outcome = outcome.map(Arc::new);
        if let Ok(answer) = &outcome
            && answer.is_conclusive
        {
            self.last = answer.ttl.map(|ttl| LastAnswer {
                answer: answer.clone(),
                received: now,
                validity: Validity::new(ttl, now),
            });
            self.failure = None;
            return outcome.map(Reply::new);
        }
        let stale = self.stale(now);
        let until = next_attempt(now, stale.is_some());
        let result = stale.unwrap_or_else(|| outcome.map(Reply::new));
        self.failure = Some((result.clone(), until));
        result
    }

    fn size(&self, key: &AnswerKey) -> Option<usize> {
        let of_answer =
            |answer: &UpstreamAnswer| answer.bytes.len() + size_of_val(&*answer.records);
        let last = self.last.as_ref().map(|last| of_answer(&last.answer));
        let failure = self.failure.as_ref().map(|(result, _)| match result {
            Ok(reply) => of_answer(&reply.answer),
            Err(reason) => reason.len(),
        });
        let sizes = [last, failure].into_iter().flatten();
        sizes.reduce(|a, b| a + b).map(|size| size + key.size())
    }
}

#[cfg(test)]
mod tests;
