//! One minute of connections of all kinds, faulty peers, and pods, policies and certificates that
//! come and go. See scripts/soak.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use underpass_tests::line_chart::{Chart, Line, Moment, svg};
use underpass_tests::soak::{Options, run};

#[test]
fn a_minute_of_everything_loses_no_connection_and_leaves_nothing_behind() {
    let report = run(&Options {
        seed: 1,
        duration: Duration::from_secs(60),
        plot: Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak.svg"),
        verbose: true,
    });
    println!("{report}");
    assert!(report.faults().is_empty(), "{report}");
}

/// The numbers of the attribute in the elements of this name.
fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
    let start = format!("<{element} ");
    let values = svg.split(&start).skip(1).filter_map(|e| {
        let value = e.split_once(&format!(" {attribute}=\""))?.1;
        value.split_once('"').unwrap().0.parse().ok()
    });
    values.collect()
}

#[test]
fn a_chart_shows_each_line_within_labelled_axes() {
    let line = |name: &str, points: &[(f64, f64)]| Line {
        name: name.to_owned(),
        points: points.to_vec(),
    };
    let chart = Chart {
        title: "memory <KiB>".to_owned(),
        lines: vec![
            line("agent", &[(0.0, 0.0), (60.0, 450.0)]),
            line("proxy", &[(0.0, 100.0), (60.0, 100.0)]),
        ],
    };
    let start = Moment {
        name: "load".to_owned(),
        at: 30.0,
    };
    let drawn = svg("soak", &[chart.clone(), chart], &[start]);

    // The axes end at round values, to which the lines are drawn in proportion.
    for label in [
        ">0<",
        ">100<",
        ">500<",
        ">60<",
        ">memory &lt;KiB><",
        ">agent<",
        ">proxy<",
    ] {
        assert_eq!(
            drawn.matches(label).count() % 2,
            0,
            "{label} in both charts"
        );
        assert!(drawn.contains(label), "{label} in {drawn}");
    }
    let points: Vec<&str> = drawn
        .lines()
        .filter_map(|l| {
            l.strip_prefix("<polyline ")?
                .split_once("points=\"")?
                .1
                .split_once('"')
        })
        .map(|(points, _)| points)
        .collect();
    let [agent, proxy, below, _] = points[..] else {
        panic!("{points:?}");
    };
    assert_eq!(agent, "70.0,230.0 800.0,95.0");
    assert_eq!(proxy, "70.0,200.0 800.0,200.0");
    assert_eq!(
        below, "70.0,450.0 800.0,315.0",
        "the second chart is below the first"
    );
    assert!(
        numbers(&drawn, "line", "x1").contains(&435.0),
        "the moment in the middle"
    );
    assert!(
        numbers(&drawn, "text", "y")
            .iter()
            .all(|y| (0.0..520.0).contains(y))
    );
}
