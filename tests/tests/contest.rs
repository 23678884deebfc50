//! Every row of the benchmark that compares proxies can be measured. See scripts/bench contest.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use clap::Parser;
use serde_json::Value;
use underpass_tests::binaries::binary;
use underpass_tests::contest::{Options, Row, run};

fn parse(arguments: &[&str]) -> Result<Options, String> {
    let parsed = Options::try_parse_from(["contest"].iter().chain(arguments));
    parsed.map_err(|e| e.to_string())
}

#[test]
fn every_row_measures_every_contestant_it_applies_to() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("contest");
    let _ = std::fs::remove_dir_all(&out);
    let peer = format!("peer={}", binary("underpass-proxy").display());
    let mut options = parse(&[
        "--rounds",
        "1",
        "--milliseconds",
        "60",
        "--held",
        "300",
        "--peer",
        &peer,
        "--out",
        out.to_str().unwrap(),
    ])
    .unwrap();
    options.program = Some(env!("CARGO_BIN_EXE_underpass-bench").into());
    run(&options);

    let written = std::fs::read(out.join("contest.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    let metrics = written["metrics"].as_object().unwrap();
    for row in Row::ALL {
        let is_of = |key: &str| key.split('.').next() == Some(row.name);
        let mut of_row = metrics.iter().filter(|(key, _)| is_of(key)).peekable();
        assert!(of_row.peek().is_some(), "{} has no metric", row.name);
        for (key, metric) in of_row {
            let samples = metric["samples"].as_object().unwrap();
            for proxy in ["h2", "own", "peer"] {
                let values = samples[proxy].as_array().unwrap();
                let [value] = &values[..] else {
                    panic!("{key} of {proxy}: {values:?}");
                };
                let value = value.as_f64().unwrap();
                // Memory may shrink meanwhile.
                assert!(
                    value > 0.0 || row.name == "memory",
                    "{key} of {proxy}: {value}"
                );
            }
            let others: &[&str] = match (row.name, key.split('.').nth(1)) {
                ("memory", _) => &[],
                ("same-up" | "same-rr", Some("cpu")) => &[],
                ("same-up" | "same-rr", _) => &["direct"],
                (_, Some("cpu")) | ("calls", _) => &["floor-epoll", "floor-threads"],
                ("held", _) => &["direct", "floor-epoll"],
                _ => &["direct", "floor-epoll", "floor-threads"],
            };
            assert_eq!(samples.len(), others.len() + 3, "{key}: {samples:?}");
            assert!(
                others.iter().all(|name| samples.contains_key(*name)),
                "{key}"
            );
        }
    }
    for plot in ["bulk", "round-trips", "beside", "connections", "costs"] {
        let svg = std::fs::read_to_string(out.join(format!("{plot}.svg"))).unwrap();
        assert!(
            svg.contains(">peer<") && svg.contains(">floor<"),
            "{plot}: {svg}"
        );
        assert!(
            !svg.contains("NaN") && !svg.contains("inf"),
            "{plot}: {svg}"
        );
    }
}

#[test]
fn invalid_options_are_rejected_with_the_reason() {
    for (arguments, reason) in [
        (["--rows", "up1,unknown"], "no row unknown"),
        (["--peer", "/bin/sh"], "expected NAME=PATH"),
        (["--peer", "peer=/nowhere"], "is not a file"),
        (["--peer", "own=/bin/sh"], "name of another contestant"),
        (["--peer", "A/B=/bin/sh"], "invalid name"),
        (["--variant", "x=y"], "expected NAME=VARIABLE=VALUE"),
        (["--variant", "floor=A=B"], "name of another contestant"),
        (["--rounds", "0"], "0 is not in"),
        (["--milliseconds", "5"], "5 is not in"),
        (["--held", "x"], "invalid digit"),
    ] {
        let error = parse(&arguments).unwrap_err();
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
}
