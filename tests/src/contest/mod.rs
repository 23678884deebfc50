//! The contest: proxies side by side, beside plain TCP and the floor, under the same load through
//! pods of the same kind. See scripts/bench.
//!
//! The floor is what any two proxies cost: each connection is copied by two processes under the NAT
//! rules of a mesh, without encryption and without sharing a connection between the nodes.

mod arena;
mod charts;
mod floor;
mod held;
mod load;
mod memory;
mod metric;
mod processes;
mod report;
mod rows;
mod targets;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use arena::Arena;
pub use floor::run as run_floor;
pub use held::run as run_hold;
pub use metric::Metric;
pub use report::Report;
pub use rows::Row;

/// Measure proxies side by side, beside plain TCP and the floor.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "scripts/bench contest")]
pub struct Options {
    /// The rows to measure, separated by commas. [default: all]
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<Row>,
    /// How often each row is measured. The contestants alternate.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// How long a contestant is loaded in each round of a row, in milliseconds.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub milliseconds: u64,
    /// Another proxy that speaks ZDS and has ztunnel's environment variables.
    #[arg(long, value_name = "NAME=PATH")]
    pub peer: Vec<Peer>,
    /// Another Underpass, with environment variables of its own.
    #[arg(long, value_name = "NAME=VARIABLE=VALUE[,VARIABLE=VALUE…]")]
    pub variant: Vec<Variant>,
    /// Connections that are held open in the row `held`, all from one client address. Contestants
    /// whose processes may not open as many files are left out.
    #[arg(
        long,
        default_value_t = 5_000,
        value_parser = clap::value_parser!(u32).range(32..=250_000)
    )]
    pub held: u32,
    /// Folder of the result: `contest.json`, into which the measured rows are merged, and plots.
    #[arg(long, default_value = "docs/performance")]
    pub out: PathBuf,
    /// The program that has the commands `floor` and `hold`. [default: this one]
    #[arg(skip)]
    pub program: Option<PathBuf>,
}

/// A proxy of another project.
#[derive(Debug, Clone)]
pub struct Peer {
    name: String,
    program: PathBuf,
}

/// Underpass with other settings.
#[derive(Debug, Clone)]
pub struct Variant {
    name: String,
    environment: Vec<(String, String)>,
}

/// The contestants that a name must not repeat.
const RESERVED: [&str; 4] = [arena::DIRECT, arena::FLOOR, "h2", "own"];

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, program) = text.split_once('=').ok_or("expected NAME=PATH")?;
        let program = PathBuf::from(program);
        if !program.is_file() {
            return Err(format!("{} is not a file", program.display()));
        }
        let name = contestant_name(name)?;
        Ok(Self { name, program })
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected NAME=VARIABLE=VALUE";
        let (name, settings) = text.split_once('=').ok_or(expected)?;
        let pair = |setting: &str| {
            let (variable, value) = setting.split_once('=').ok_or(expected)?;
            Ok((variable.to_owned(), value.to_owned()))
        };
        let environment: Result<_, String> = settings.split(',').map(pair).collect();
        Ok(Self {
            name: contestant_name(name)?,
            environment: environment?,
        })
    }
}

fn contestant_name(name: &str) -> Result<String, String> {
    let is_valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() || name.len() > 12 || !name.chars().all(is_valid) {
        return Err(format!(
            "invalid name {name:?}: expected up to 12 lower-case letters and digits"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name} is the name of another contestant"));
    }
    Ok(name.to_owned())
}

impl Options {
    /// The rows to measure, in order.
    fn rows(&self) -> Vec<Row> {
        let is_wanted = |row: &Row| self.rows.is_empty() || self.rows.contains(row);
        Row::ALL.into_iter().filter(is_wanted).collect()
    }

    /// The program that has the commands `floor` and `hold`.
    fn program(&self) -> PathBuf {
        let this = || std::env::current_exe().unwrap();
        self.program.clone().unwrap_or_else(this)
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// Measures everything, and prints it.
pub fn run(options: &Options) -> Report {
    let mut arena = Arena::new(options);
    let mut report = Report::new(options, arena.names());
    for row in options.rows() {
        let rounds = row.rounds(options);
        for round in 0..rounds {
            for position in 0..arena.len() {
                // So that none always follows the same one.
                let index = (position + round as usize) % arena.len();
                if let Some(samples) = row.measure(&mut arena, index, options) {
                    report.add(arena.name(index), samples);
                }
            }
        }
        println!("{}", report.table(row));
    }
    report.write();
    report
}
