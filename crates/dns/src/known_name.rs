//! What is known of a name's addresses, by family. No I/O.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::Text;

use crate::lookup_cache::Knowledge;
use crate::validity::{MAX_TTL, Validity, next_attempt};

/// One or more addresses, or why there are none.
pub(super) type LookupResult = Result<Arc<[IpAddr]>, String>;

/// What a name server reports about the addresses of one family; possibly that there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FamilyAnswer {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: Duration,
}

/// The answers for IPv4 and IPv6, or why there are none.
pub(super) struct NameLookup {
    pub(super) name: Text,
    pub(super) answers: [Result<FamilyAnswer, String>; 2],
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
    validity: Validity,
}

impl KnownFamily {
    /// Whether these are addresses that may be used while no name server answers.
    fn is_usable(&self, now: Instant) -> bool {
        !self.addresses.is_empty() && self.validity.is_usable(now)
    }
}

impl Knowledge for KnownName {
    type Key = Text;
    type Outcome = NameLookup;
    type Answer = LookupResult;

    /// The result of the last lookup, while it is valid.
    fn valid(&self, now: Instant) -> Option<LookupResult> {
        let (result, until) = self.last.as_ref()?;
        (now < *until).then(|| result.clone())
    }

    /// The addresses to use while no name server answers.
    fn stale(&self, now: Instant) -> Option<LookupResult> {
        Some(Ok(self.usable(now)?))
    }

    /// A family without an answer keeps its addresses.
    fn record(&mut self, lookup: NameLookup, now: Instant) -> LookupResult {
        let NameLookup { name, answers } = lookup;
        let (mut until, mut failure) = (now + MAX_TTL, None);
        for (known, answer) in self.families.iter_mut().zip(answers) {
            match answer {
                Ok(FamilyAnswer { addresses, ttl }) => {
                    let validity = Validity::new(ttl, now);
                    *known = Some(KnownFamily {
                        addresses,
                        validity,
                    });
                    until = until.min(validity.expires());
                }
                Err(reason) => failure = Some(reason),
            }
        }
        let addresses = self.usable(now);
        if failure.is_some() {
            until = until.min(next_attempt(now, addresses.is_some()));
        }
        let result = addresses.ok_or_else(|| match failure {
            Some(reason) => format!("{name}: {reason}"),
            None => format!("{name} has no address"),
        });
        self.last = Some((result.clone(), until));
        result
    }

    fn size(&self, name: &Text) -> Option<usize> {
        let (result, _) = self.last.as_ref()?;
        let of_families = self.families.iter().flatten();
        let addresses: usize = of_families.map(|family| family.addresses.len()).sum();
        let result = match result {
            Ok(addresses) => size_of_val(&**addresses),
            Err(reason) => reason.len(),
        };
        Some(name.len() + addresses * size_of::<IpAddr>() + result)
    }
}

impl KnownName {
    /// The addresses of all families that may be used while no name server answers.
    fn usable(&self, now: Instant) -> Option<Arc<[IpAddr]>> {
        let usable = self.families.iter().flatten();
        let addresses: Vec<IpAddr> = usable
            .filter(|family| family.is_usable(now))
            .flat_map(|family| family.addresses.iter().copied())
            .collect();
        (!addresses.is_empty()).then(|| addresses.into())
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

    fn record(
        known: &mut KnownName,
        answers: [Result<FamilyAnswer, String>; 2],
        now: Instant,
    ) -> LookupResult {
        let name = Text::from("a");
        known.record(NameLookup { name, answers }, now)
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
            assert_eq!(record(&mut known, answers, now), both);
            assert_eq!(validity(&known, now), expected);
        }
    }

    #[test]
    fn that_a_name_has_no_address_is_valid_for_its_ttl_and_ends_earlier_addresses() {
        let now = Instant::now();
        let mut known = KnownName::default();
        let _ = record(
            &mut known,
            [answer(&["192.0.2.1"], 60), answer(&[], 60)],
            now,
        );
        let later = now + Duration::from_secs(100);
        let none = [answer(&[], 30), answer(&[], 40)];
        let expected = Err("a has no address".to_owned());
        assert_eq!(record(&mut known, none, later), expected);
        assert_eq!(validity(&known, later), 30);
        assert_eq!(known.stale(later), None, "it had one");
    }

    #[test]
    fn addresses_outlive_their_ttl_while_no_name_server_answers() {
        let start = Instant::now();
        let mut known = KnownName::default();
        let _ = record(
            &mut known,
            [answer(&["192.0.2.1"], 60), answer(&[], 60)],
            start,
        );
        let an_hour = start + Duration::from_secs(3600);
        assert_eq!(known.valid(an_hour), None);
        assert_eq!(known.stale(an_hour), Some(found(&["192.0.2.1"])));
        let result = record(&mut known, [failed(), failed()], an_hour);
        assert_eq!(result, found(&["192.0.2.1"]));
        assert_eq!(validity(&known, an_hour), 30, "until the next attempt");
        let two_days = start + Duration::from_secs(2 * 24 * 3600);
        assert_eq!(known.stale(two_days), None);
        let result = record(&mut known, [failed(), failed()], two_days);
        assert_eq!(result, Err("a: server failure".to_owned()));
    }

    #[test]
    fn a_family_without_an_answer_keeps_its_addresses_beside_new_ones_of_the_other() {
        let start = Instant::now();
        let mut known = KnownName::default();
        let both = [answer(&["192.0.2.1"], 60), answer(&["2001:db8::1"], 60)];
        let _ = record(&mut known, both, start);
        let later = start + Duration::from_secs(100);
        let half = [failed(), answer(&["2001:db8::2"], 60)];
        let expected = found(&["192.0.2.1", "2001:db8::2"]);
        assert_eq!(record(&mut known, half, later), expected);
        assert_eq!(validity(&known, later), 30, "until the next attempt");
        // That one family has no addresses does not mean that the name has none.
        let mut unknown = KnownName::default();
        let result = record(&mut unknown, [failed(), answer(&[], 60)], start);
        assert_eq!(result, Err("a: server failure".to_owned()));
        assert_eq!(validity(&unknown, start), 1);
    }
}
