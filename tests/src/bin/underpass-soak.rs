//! A seeded soak of a sandbox; see scripts/soak.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use underpass_tests::soak::{Options, run};

/// Load a sandbox with connections of all kinds, faulty peers, and pods, policies and certificates
/// that come and go. Fail if a connection fails that should not, or if anything has grown
/// afterwards.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// Seed of all random choices, to repeat a soak. [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// How long the load lasts, in whole seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// File for the plot of what the programs used over time, as SVG.
    #[arg(long, default_value = "target/soak.svg")]
    plot: PathBuf,
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
        plot: arguments.plot,
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
