//! A seeded adversary over a sandbox; see scripts/campaign.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use underpass_tests::campaign::{Options, run};

/// Change pods, rules, programs and labels of a sandbox at random, under traffic, and judge what
/// packet sockets see.
#[derive(Debug, Parser)]
#[command(name = "campaign")]
struct Arguments {
    /// Seed of all random choices, to repeat a campaign. [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// How long to make changes, in whole seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Capture method of all pods.
    #[arg(long, default_value = "routed", value_parser = ["routed", "nat"])]
    capture: String,
    /// Print only the result.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let options = Options {
        seed: arguments.seed.unwrap_or(now.as_secs()),
        duration: Duration::from_secs(arguments.seconds),
        capture: arguments.capture,
        verbose: !arguments.quiet,
    };
    println!("seed {}", options.seed);
    let report = run(&options);
    println!("{report}");
    if report.faults().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
