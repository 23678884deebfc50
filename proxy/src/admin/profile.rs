//! CPU profiles in the format of `github.com/google/pprof/proto/profile.proto`.

use std::collections::HashMap;
use std::time::Duration;

use pprof::{Frames, ProfilerGuardBuilder};
use prost::Message;

/// Libraries in which unwinding the stack from a signal handler is unsafe.
const BLOCKLIST: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Samples all threads for `time`, `frequency` times a second, and returns the encoded profile.
///
/// # Errors
/// If another profile is being taken.
pub(super) fn cpu(time: Duration, frequency: u64) -> Result<Vec<u8>, pprof::Error> {
    let hertz = i32::try_from(frequency).unwrap_or(1);
    let guard = ProfilerGuardBuilder::default()
        .frequency(hertz)
        .blocklist(&BLOCKLIST)
        .build()?;
    std::thread::sleep(time);
    let report = guard.report().build()?;
    drop(guard);
    let period = 1_000_000_000 / i64::from(hertz.max(1));
    let mut builder = Builder::default();
    let stacks = report
        .data
        .iter()
        .map(|(frames, count)| (frames, i64::try_from(*count).unwrap_or(i64::MAX)));
    let samples = stacks
        .map(|(frames, count)| builder.sample(frames, count, period))
        .collect();
    Ok(builder.finish(samples, time, period).encode_to_vec())
}

/// Interns the strings, functions and locations of a profile.
#[derive(Default)]
struct Builder {
    strings: HashMap<String, i64>,
    table: Vec<String>,
    functions: Vec<Function>,
    locations: Vec<Location>,
    by_name: HashMap<(String, u32), u64>,
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        if self.table.is_empty() {
            self.table.push(String::new()); // required by the format
            self.strings.insert(String::new(), 0);
        }
        if let Some(known) = self.strings.get(text) {
            return *known;
        }
        let index = i64::try_from(self.table.len()).unwrap_or_default();
        self.table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn sample(&mut self, frames: &Frames, count: i64, period: i64) -> Sample {
        let mut locations = Vec::new();
        for symbol in frames.frames.iter().flatten() {
            locations.push(self.location(&symbol.name(), &symbol.filename(), symbol.lineno()));
        }
        let thread = self.string("thread");
        let name = self.string(&frames.thread_name);
        Sample {
            location_id: locations,
            value: vec![count, count.saturating_mul(period)],
            label: vec![Label {
                key: thread,
                str: name,
            }],
        }
    }

    fn location(&mut self, name: &str, file: &str, line: u32) -> u64 {
        if let Some(known) = self.by_name.get(&(name.to_owned(), line)) {
            return *known;
        }
        let (text, filename) = (self.string(name), self.string(file));
        let id = self.locations.len() as u64 + 1;
        self.functions.push(Function {
            id,
            name: text,
            system_name: text,
            filename,
        });
        self.locations.push(Location {
            id,
            line: vec![Line {
                function_id: id,
                line: i64::from(line),
            }],
        });
        self.by_name.insert((name.to_owned(), line), id);
        id
    }

    fn finish(mut self, sample: Vec<Sample>, time: Duration, period: i64) -> Profile {
        let [samples, count, cpu, nanoseconds] =
            ["samples", "count", "cpu", "nanoseconds"].map(|text| self.string(text));
        let cpu_time = ValueType {
            r#type: cpu,
            unit: nanoseconds,
        };
        Profile {
            sample_type: vec![
                ValueType {
                    r#type: samples,
                    unit: count,
                },
                cpu_time.clone(),
            ],
            sample,
            location: self.locations,
            function: self.functions,
            string_table: self.table,
            duration_nanos: i64::try_from(time.as_nanos()).unwrap_or(i64::MAX),
            period_type: Some(cpu_time),
            period,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

/// A type and its unit, as indices into the string table.
#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    /// Innermost frame first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}
