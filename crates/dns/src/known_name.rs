//! What is known of a name, and for how long: that it has no addresses as in RFC 2308, and its
//! addresses beyond their TTL as in RFC 8767 while no name server answers. No I/O.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers are valid for their TTL, within these bounds. The lower one also limits how often a name
/// is queried whose lookup fails.
const MIN_TTL: Duration = Duration::from_secs(1);
pub(super) const MAX_TTL: Duration = Duration::from_secs(300);
/// How long addresses are used beyond their TTL, RFC 8767 section 4.
const MAX_STALE: Duration = Duration::from_secs(24 * 3600);
/// Time until the next attempt after one that failed, while stale addresses are used, RFC 8767
/// section 5.
const STALE_TTL: Duration = Duration::from_secs(30);

/// One or more addresses, or why there are none.
pub(super) type LookupResult = Result<Arc<[IpAddr]>, String>;

/// What a name server reports about the addresses of one family; possibly that there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FamilyAnswer {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: Duration,
}

/// What is known of a name.
#[derive(Debug, Default)]
pub(super) struct KnownName {
    /// IPv4, IPv6.
    families: [Option<KnownFamily>; 2],
    /// The result of the last lookup, and until when it is valid.
    last: Option<(LookupResult, Instant)>,
}

#[derive(Debug)]
struct KnownFamily {
    addresses: Vec<IpAddr>,
    /// When their TTL ends.
    expires: Instant,
}

impl KnownFamily {
    /// Whether these are addresses that may be used while no name server answers.
    fn is_usable(&self, now: Instant) -> bool {
        !self.addresses.is_empty() && now < self.expires + MAX_STALE
    }
}

impl KnownName {
    /// The result of the last lookup, while it is valid.
    pub(super) fn valid(&self, now: Instant) -> Option<LookupResult> {
        let (result, until) = self.last.as_ref()?;
        (now < *until).then(|| result.clone())
    }

    /// The addresses to use while no name server answers.
    pub(super) fn stale(&self, now: Instant) -> Option<Arc<[IpAddr]>> {
        let usable = self.families.iter().flatten();
        let addresses: Vec<IpAddr> = usable
            .filter(|family| family.is_usable(now))
            .flat_map(|family| family.addresses.iter().copied())
            .collect();
        (!addresses.is_empty()).then(|| addresses.into())
    }

    /// Records the answers for IPv4 and IPv6, or why there are none. A family without an answer
    /// keeps its addresses.
    pub(super) fn record(
        &mut self,
        name: &str,
        answers: [Result<FamilyAnswer, String>; 2],
        now: Instant,
    ) -> LookupResult {
        let (mut until, mut failure) = (now + MAX_TTL, None);
        for (known, answer) in self.families.iter_mut().zip(answers) {
            match answer {
                Ok(FamilyAnswer { addresses, ttl }) => {
                    let expires = now + ttl.clamp(MIN_TTL, MAX_TTL);
                    *known = Some(KnownFamily { addresses, expires });
                    until = until.min(expires);
                }
                Err(reason) => failure = Some(reason),
            }
        }
        let addresses = self.stale(now);
        if failure.is_some() {
            let next_attempt = if addresses.is_some() {
                STALE_TTL
            } else {
                MIN_TTL
            };
            until = until.min(now + next_attempt);
        }
        let result = addresses.ok_or_else(|| match failure {
            Some(reason) => format!("{name}: {reason}"),
            None => format!("{name} has no address"),
        });
        self.last = Some((result.clone(), until));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(addresses: &[&str], ttl: u64) -> Result<FamilyAnswer, String> {
        Ok(FamilyAnswer {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ttl: Duration::from_secs(ttl),
        })
    }

    fn failed() -> Result<FamilyAnswer, String> {
        Err("server failure".to_owned())
    }

    fn found(addresses: &[&str]) -> LookupResult {
        Ok(addresses.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    /// For how many whole seconds a result recorded at `now` is valid.
    fn validity(known: &KnownName, now: Instant) -> u64 {
        let at = |s| now + Duration::from_secs(s);
        (0..).find(|s| known.valid(at(*s)).is_none()).unwrap()
    }

    #[test]
    fn a_result_is_valid_for_the_shorter_ttl_within_bounds() {
        let now = Instant::now();
        for (v4, v6, expected) in [(60, 20, 20), (0, 60, 1), (100_000, 100_000, 300)] {
            let mut known = KnownName::default();
            let answers = [answer(&["192.0.2.1"], v4), answer(&["2001:db8::1"], v6)];
            let both = found(&["192.0.2.1", "2001:db8::1"]);
            assert_eq!(known.record("a", answers, now), both);
            assert_eq!(validity(&known, now), expected);
        }
    }

    #[test]
    fn that_a_name_has_no_address_is_valid_for_its_ttl_and_ends_earlier_addresses() {
        let now = Instant::now();
        let mut known = KnownName::default();
        let _ = known.record("a", [answer(&["192.0.2.1"], 60), answer(&[], 60)], now);
        let later = now + Duration::from_secs(100);
        let none = [answer(&[], 30), answer(&[], 40)];
        let expected = Err("a has no address".to_owned());
        assert_eq!(known.record("a", none, later), expected);
        assert_eq!(validity(&known, later), 30);
        assert_eq!(known.stale(later), None, "it had one");
    }

    #[test]
    fn addresses_outlive_their_ttl_while_no_name_server_answers() {
        let start = Instant::now();
        let mut known = KnownName::default();
        let _ = known.record("a", [answer(&["192.0.2.1"], 60), answer(&[], 60)], start);
        let an_hour = start + Duration::from_secs(3600);
        assert_eq!(known.valid(an_hour), None);
        assert_eq!(known.stale(an_hour), found(&["192.0.2.1"]).ok());
        let result = known.record("a", [failed(), failed()], an_hour);
        assert_eq!(result, found(&["192.0.2.1"]));
        assert_eq!(validity(&known, an_hour), 30, "until the next attempt");
        let two_days = start + Duration::from_secs(2 * 24 * 3600);
        assert_eq!(known.stale(two_days), None);
        let result = known.record("a", [failed(), failed()], two_days);
        assert_eq!(result, Err("a: server failure".to_owned()));
    }

    #[test]
    fn a_family_without_an_answer_keeps_its_addresses_beside_new_ones_of_the_other() {
        let start = Instant::now();
        let mut known = KnownName::default();
        let both = [answer(&["192.0.2.1"], 60), answer(&["2001:db8::1"], 60)];
        let _ = known.record("a", both, start);
        let later = start + Duration::from_secs(100);
        let half = [failed(), answer(&["2001:db8::2"], 60)];
        let expected = found(&["192.0.2.1", "2001:db8::2"]);
        assert_eq!(known.record("a", half, later), expected);
        assert_eq!(validity(&known, later), 30, "until the next attempt");
        // That one family has no addresses does not mean that the name has none.
        let mut unknown = KnownName::default();
        let result = unknown.record("a", [failed(), answer(&[], 60)], start);
        assert_eq!(result, Err("a: server failure".to_owned()));
        assert_eq!(validity(&unknown, start), 1);
    }
}
