//! How long what a name server answered is used: for its TTL, that something does not exist as in
//! RFC 2308, and beyond the TTL as in RFC 8767 while no name server answers. No I/O.

use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use hickory_proto::rr::RData;

/// Answers are valid for their TTL, within these bounds. The lower one also limits how often a name
/// is queried whose lookup fails (RFC 9520 section 3.2).
const MIN_TTL: Duration = Duration::from_secs(1);
pub(super) const MAX_TTL: Duration = Duration::from_secs(300);
/// How long answers are used beyond their TTL, RFC 8767 section 4.
const MAX_STALE: Duration = Duration::from_secs(24 * 3600);
/// TTL of answers that are used beyond their own, RFC 8767 section 4; also the time until the next
/// attempt after one that failed, section 5.
pub(super) const STALE_TTL: Duration = Duration::from_secs(30);
/// How long a client waits for a name server if there is a stale answer, RFC 8767 section 5.
pub(super) const STALE_ANSWER_DELAY: Duration = Duration::from_millis(1800);

/// Until when an answer is valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    expires: Instant,
}

impl Validity {
    /// The validity of an answer that was received now.
    pub(super) fn new(ttl: Duration, now: Instant) -> Self {
        let expires = now + ttl.clamp(MIN_TTL, MAX_TTL);
        Self { expires }
    }

    /// When the answer expires.
    pub(super) fn expires(self) -> Instant {
        self.expires
    }

    /// Whether the answer is valid.
    pub(super) fn is_valid(self, now: Instant) -> bool {
        now < self.expires
    }

    /// Whether the answer may be used while no name server answers.
    pub(super) fn is_usable(self, now: Instant) -> bool {
        now < self.expires + MAX_STALE
    }
}

/// When to query again after a failed attempt: later if there is a stale answer.
pub(super) fn next_attempt(now: Instant, has_stale: bool) -> Instant {
    now + if has_stale { STALE_TTL } else { MIN_TTL }
}

/// How long an answer without records of the queried type is valid, RFC 2308 section 5; not at all
/// without a SOA record.
pub(super) fn negative_ttl(answer: &Message) -> Duration {
    let ttl = answer.authorities.iter().find_map(|r| match &r.data {
        RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
        _ => None,
    });
    Duration::from_secs(ttl.unwrap_or_default().into())
}
