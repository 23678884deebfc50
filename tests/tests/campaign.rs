//! A random adversary over a sandbox under traffic, one minute for each capture.
//! See scripts/campaign.

use std::time::Duration;

use underpass_tests::campaign::{Options, run};

/// With the same seed, the same changes are made in the same order; a seed that fails belongs here.
fn campaign(seed: u64, capture: &str) {
    let report = run(&Options {
        seed,
        duration: Duration::from_secs(60),
        capture: capture.to_owned(),
        verbose: true,
    });
    println!("{report}");
    assert_eq!(report.faults(), Vec::<String>::new());
}

#[test]
fn no_random_change_makes_a_verified_pod_send_plain_text() {
    campaign(1, "routed");
}

#[test]
fn no_random_change_makes_a_verified_pod_send_plain_text_under_nat() {
    campaign(2, "nat");
}
