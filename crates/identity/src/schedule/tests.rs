//! Tests of the schedule.

use super::*;

fn id(name: &str) -> Identity {
    format!("spiffe://td/ns/default/sa/{name}").parse().unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

#[test]
fn a_certificate_is_shared_by_all_pods_of_an_identity_and_dropped_with_the_last() {
    let mut s = Schedule::default();
    s.add_pod(&id("a"), at(0));
    s.add_pod(&id("a"), at(0));
    assert_eq!(
        (s.next_due(at(0)), s.next_due(at(0))),
        (Some(id("a")), None)
    );
    s.record_issued(&id("a"), at(0), at(100), at(200), 0.0);
    assert_eq!((s.next_due(at(99)), s.wake_at()), (None, Some(at(100))));
    assert!(!s.remove_pod(&id("a")));
    assert!(s.remove_pod(&id("a")));
    assert_eq!((s.next_due(at(100)), s.wake_at()), (None, None));
    assert!(!s.remove_pod(&id("a")), "the identity was removed");
    s.record_issued(&id("a"), at(0), at(100), at(200), 0.0); // a late response
    assert_eq!(s.wake_at(), None);
}

#[test]
fn the_most_urgent_is_requested_first_and_eight_at_once() {
    let mut s = Schedule::default();
    for i in 0..10 {
        s.add_pod(&id(&format!("p{i}")), at(i));
    }
    s.prioritize(&id("p7"));
    assert_eq!(
        s.next_due(at(20)),
        Some(id("p7")),
        "a connection is waiting"
    );
    assert_eq!(s.next_due(at(20)), Some(id("p0")), "it has waited longest");
    let rest: Vec<_> = std::iter::from_fn(|| s.next_due(at(20))).collect();
    assert_eq!(rest.len(), 6, "eight requests in flight");
    assert_eq!(s.wake_at(), None);
    s.record_issued(&id("p0"), at(20), at(1000), at(2000), 0.0);
    assert!(s.next_due(at(20)).is_some() && s.next_due(at(20)).is_none());
}

#[test]
fn an_identity_without_a_certificate_is_retried_within_ten_seconds() {
    let mut s = Schedule::default();
    s.add_pod(&id("a"), at(0));
    for _ in 0..20 {
        let now = s.wake_at().unwrap();
        assert_eq!(s.next_due(now), Some(id("a")));
        s.record_failure(&id("a"), now, 1.0);
        let delay = s.wake_at().unwrap().duration_since(now).unwrap();
        assert!(delay < Duration::from_secs(10), "{delay:?}");
    }
    let now = s.wake_at().unwrap();
    assert_eq!(s.next_due(now), Some(id("a")));
    s.record_issued(&id("a"), now, now, now + Duration::from_secs(1), 0.0);
    let expired = s.wake_at().unwrap() + Duration::from_secs(2);
    assert_eq!(s.next_due(expired), Some(id("a")));
    for _ in 0..8 {
        s.record_failure(&id("a"), expired, 1.0);
    }
    let delay = s.wake_at().unwrap().duration_since(expired).unwrap();
    assert!(delay < Duration::from_secs(10), "expired: {delay:?}");
}

#[test]
fn retries_back_off_and_are_due_no_later_than_the_expiry() {
    let mut s = Schedule::default();
    s.add_pod(&id("a"), at(0));
    assert_eq!(s.next_due(at(0)), Some(id("a")));
    s.record_issued(&id("a"), at(0), at(1), at(10_000_000), 0.0);
    let mut delays = Vec::new();
    for _ in 0..11 {
        let now = s.wake_at().unwrap();
        assert_eq!(s.next_due(now), Some(id("a")));
        s.record_failure(&id("a"), now, 0.5);
        delays.push(
            s.wake_at()
                .unwrap()
                .duration_since(now)
                .unwrap()
                .as_millis(),
        );
    }
    assert_eq!(
        delays,
        [
            500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128_000, 150_000, 150_000
        ]
    );
    for (random, delay) in [(0.0, 120_000), (1.0, 180_000)] {
        let now = s.wake_at().unwrap();
        assert_eq!(s.next_due(now), Some(id("a")));
        s.record_failure(&id("a"), now, random);
        assert_eq!(
            s.wake_at()
                .unwrap()
                .duration_since(now)
                .unwrap()
                .as_millis(),
            delay
        );
    }
    let now = s.wake_at().unwrap();
    assert_eq!(s.next_due(now), Some(id("a")));
    s.record_issued(
        &id("a"),
        now,
        now + Duration::from_secs(10),
        now + Duration::from_secs(12),
        0.0,
    );
    for second in [10, 11] {
        assert_eq!(s.next_due(now + Duration::from_secs(second)), Some(id("a")));
        s.record_failure(&id("a"), now + Duration::from_secs(second), 1.0);
    }
    assert_eq!(s.wake_at(), Some(now + Duration::from_secs(12)));
}

#[test]
fn very_short_validities_cause_no_request_loop() {
    let mut s = Schedule::default();
    s.add_pod(&id("a"), at(0));
    let mut requests = 0;
    while let Some(now) = s.wake_at().filter(|t| *t < at(60)) {
        assert_eq!(s.next_due(now), Some(id("a")));
        s.record_issued(&id("a"), now, now, now + Duration::from_secs(1), 0.0);
        requests += 1;
    }
    assert!(requests < 10, "{requests} requests in a minute");
}

#[test]
fn a_rotation_renews_all_certificates_once_per_interval() {
    let mut s = Schedule::default();
    for name in ["a", "b"] {
        s.add_pod(&id(name), at(0));
        assert_eq!(s.next_due(at(0)), Some(id(name)));
        s.record_issued(&id(name), at(0), at(10_000), at(20_000), 0.0);
    }
    s.renew_all(at(1), || 0.0);
    let renewed: std::collections::BTreeSet<_> = std::iter::from_fn(|| s.next_due(at(1))).collect();
    assert_eq!(renewed, [id("a"), id("b")].into());
    for name in ["a", "b"] {
        s.record_issued(&id(name), at(2), at(10_000), at(20_000), 0.0);
        s.renew_all(at(2), || 0.0);
    }
    assert_eq!(s.next_due(at(3)), None);
    s.renew_all(at(700), || 0.0);
    assert!(s.next_due(at(700)).is_some());
}

/// A schedule with `count` identities whose certificates are valid for a day.
fn issued(count: usize) -> Schedule {
    let mut s = Schedule::default();
    for i in 0..count {
        let id = id(&format!("p{i}"));
        s.add_pod(&id, at(0));
        assert_eq!(s.next_due(at(0)), Some(id.clone()));
        s.record_issued(&id, at(0), at(43_200), at(86_400), 0.0);
    }
    s
}

#[test]
fn one_success_after_an_outage_retries_all_others() {
    let mut s = issued(20);
    let mut now = at(43_200);
    // The authority is unreachable for an hour.
    let mut random = (0..20).cycle().map(|i| f64::from(i) / 20.0);
    while now < at(46_800) {
        while let Some(id) = s.next_due(now) {
            s.record_failure(&id, now, random.next().unwrap());
        }
        now = s.wake_at().unwrap();
    }
    let first = s.next_due(now).unwrap();
    now = s.wake_at().unwrap();
    let failing = s.next_due(now);
    assert_eq!(s.next_due(now), None, "the others wait");
    s.record_issued(&first, now, at(90_000), at(130_000), 0.0);
    let mut renewed = 1;
    while let Some(id) = s.next_due(now) {
        s.record_issued(&id, now, at(90_000), at(130_000), 0.0);
        renewed += 1;
    }
    assert_eq!(
        renewed, 19,
        "all but the one whose request is still failing"
    );
    let later = now + Duration::from_secs(10);
    s.record_failure(failing.as_ref().unwrap(), later, 1.0);
    assert_eq!(s.next_due(later + Duration::from_secs(1)), failing);
}

#[test]
fn an_identity_that_alone_is_refused_is_not_retried_with_every_success() {
    let mut s = issued(100);
    s.add_pod(&id("refused"), at(50));
    let mut requests = 0;
    for i in 0..100 {
        while s.next_due(at(50)) == Some(id("refused")) {
            s.record_failure(&id("refused"), at(50), 0.5);
            requests += 1;
        }
        s.record_issued(&id(&format!("p{i}")), at(50), at(43_200), at(86_400), 0.0);
    }
    assert_eq!(requests, 2);
}

#[test]
fn renewals_are_spread() {
    let mut s = issued(1);
    assert_eq!(s.wake_at(), Some(at(43_200)));
    s.record_issued(&id("p0"), at(0), at(43_200), at(86_400), 1.0);
    assert_eq!(s.wake_at(), Some(at(34_560)), "a fifth earlier");
    s.record_issued(&id("p0"), at(0), at(59), at(118), 1.0);
    assert_eq!(s.wake_at(), Some(at(59)), "too soon to be spread");
    let mut s = issued(250);
    let mut n = 0;
    s.renew_all(at(100), || {
        n += 1;
        f64::from(n) / 250.0
    });
    let mut due = 0;
    while s.next_due(at(110)).is_some() {
        due += 1;
    }
    assert!((8..=10).contains(&due), "{due} requests in the first 10 s");
    assert!(s.entries.values().all(|e| e.due <= at(350)));
}

#[test]
fn a_clock_that_is_set_back_does_not_stall_retries() {
    let mut s = Schedule::default();
    s.add_pod(&id("a"), at(100_000));
    assert_eq!(s.next_due(at(100_000)), Some(id("a")));
    s.record_failure(&id("a"), at(100_000), 0.5);
    assert_eq!(s.next_due(at(0)), Some(id("a")));
}

/// Identities with these names, whose certificates are issued at 0, renewed at 100 and expire at
/// 200.
fn with_certificates(names: &[&str]) -> Schedule {
    let mut s = Schedule::default();
    for name in names {
        s.add_pod(&id(name), at(0));
        assert_eq!(s.next_due(at(0)), Some(id(name)));
        s.record_issued(&id(name), at(0), at(100), at(200), 0.0);
    }
    s
}

#[test]
fn a_clock_set_past_the_expiry_or_before_the_validity_renews_at_once() {
    for (shift, now) in [
        (ClockShift::Forward(Duration::from_secs(500)), at(510)),
        (
            ClockShift::Back(Duration::from_secs(500)),
            at(10) - Duration::from_secs(500),
        ),
    ] {
        let mut s = with_certificates(&["a"]);
        s.clock_set(shift, now, |_| false, || 1.0);
        assert_eq!(s.next_due(now), Some(id("a")), "{shift}");
    }
}

#[test]
fn a_clock_set_within_the_validity_renews_only_what_it_skipped_and_spreads_that() {
    let names = ["a", "b", "c", "d"];
    let mut s = with_certificates(&names);
    let shift = ClockShift::Forward(Duration::from_secs(50));
    s.clock_set(shift, at(60), |_| true, || 1.0);
    assert_eq!(s.wake_at(), Some(at(100)), "not due yet");

    let shift = ClockShift::Forward(Duration::from_secs(60));
    let mut random = [0.0, 0.25, 0.5, 1.0].into_iter();
    s.clock_set(shift, at(121), |_| true, || random.next().unwrap());
    for (seconds, name) in [(121, "a"), (122, "b"), (123, "c"), (125, "d")] {
        assert_eq!(s.wake_at(), Some(at(seconds)));
        assert_eq!(s.next_due(at(seconds)), Some(id(name)));
        s.record_issued(&id(name), at(seconds), at(1000), at(2000), 0.0);
    }

    let shift = ClockShift::Back(Duration::from_secs(60));
    s.clock_set(shift, at(66), |_| true, || 1.0);
    assert_eq!(
        s.wake_at(),
        Some(at(1000)),
        "a certificate has its own times"
    );
}

#[test]
fn retries_keep_their_delay_when_the_clock_is_set() {
    for shift in [
        ClockShift::Forward(Duration::from_secs(70)),
        ClockShift::Back(Duration::from_secs(70)),
    ] {
        let mut s = with_certificates(&["a"]);
        assert_eq!(s.next_due(at(100)), Some(id("a")));
        for _ in 0..6 {
            s.record_failure(&id("a"), at(100), 0.5);
        }
        let delay = Duration::from_secs(16);
        assert_eq!(s.wake_at(), Some(at(100) + delay));
        let now = shift.apply(at(100));
        s.clock_set(shift, now, |_| true, || 1.0);
        assert_eq!(s.wake_at(), Some(now + delay), "{shift}");
        // Without a valid certificate, it is retried sooner.
        s.clock_set(shift, shift.apply(now), |_| false, || 1.0);
        assert_eq!(s.wake_at(), Some(shift.apply(now) + Duration::from_secs(8)));
    }
}
