//! What the programs use over time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::scene::{NODES, Scene};
use crate::line_chart::Moment;
use crate::sandbox::{eventually, until};
use crate::two_nodes::{Program, TwoNodes};

/// Samples in a plot.
const SAMPLES: u32 = 300;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(200);

/// What is measured of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Resident memory that is not of files, in KiB.
    Memory,
    /// Open file descriptors.
    Descriptors,
    /// Threads.
    Threads,
    /// Asynchronous tasks that have not ended, by the count of their runtimes.
    Tasks,
    /// Open connections and tunnel streams by the proxy's own count.
    Connections,
    /// Metric series.
    Series,
}

impl Quantity {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Memory,
        Self::Descriptors,
        Self::Threads,
        Self::Tasks,
        Self::Connections,
        Self::Series,
    ];

    /// Its name and unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Memory => "memory (KiB)",
            Self::Descriptors => "open descriptors",
            Self::Threads => "threads",
            Self::Tasks => "tasks",
            Self::Connections => "open connections",
            Self::Series => "metric series",
        }
    }

    /// Whether this program has it.
    pub fn is_measured_of(self, program: Program) -> bool {
        self != Self::Connections || program == Program::Proxy
    }

    /// The most of it that does not count as growth, after these values of the program when it was
    /// idle.
    fn limit(self, idle: &Values) -> usize {
        let value = |quantity: Self| idle[quantity as usize];
        match self {
            // Stacks keep their depth, and the allocator the partly used pages of each size.
            Self::Memory => value(self) + value(self) / 2,
            // A thread that has been in a pod's network namespace keeps its own one open.
            Self::Descriptors => value(self) + value(Self::Threads),
            _ => value(self),
        }
    }
}

/// The values of a program, in the order of [`Quantity::ALL`].
type Values = [usize; Quantity::ALL.len()];

/// All quantities of all programs, in the order of [`TwoNodes::programs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement(Vec<Values>);

impl Measurement {
    fn take(scene: &Scene) -> Self {
        let of = |(node, program, _)| {
            let used = scene.nodes.resources(node, program);
            let (address, counter) = match program {
                Program::Agent => ("127.0.0.1:15014", "underpass_tasks"),
                Program::Proxy => ("127.0.0.1:15020", "tokio_num_alive_tasks"),
            };
            let metrics = Metrics::read(scene, node, address);
            let connections = match program {
                Program::Agent => 0,
                Program::Proxy => {
                    let open = scene.proxy_status(node)["connections"].as_u64();
                    usize::try_from(open.unwrap()).unwrap()
                }
            };
            Quantity::ALL.map(|quantity| match quantity {
                Quantity::Memory => used.memory_kib,
                Quantity::Descriptors => used.files,
                Quantity::Threads => used.threads,
                Quantity::Connections => connections,
                Quantity::Series => metrics.series(),
                Quantity::Tasks => metrics.value(counter),
            })
        };
        Self(TwoNodes::programs().map(of).collect())
    }

    /// One value.
    pub fn value(&self, program: usize, quantity: Quantity) -> usize {
        self.0[program][quantity as usize]
    }

    /// What has grown since `idle`: the program, the quantity, and both values.
    pub fn growth(&self, idle: &Self) -> Vec<String> {
        let mut grown = Vec::new();
        for (index, (.., name)) in TwoNodes::programs().enumerate() {
            for quantity in Quantity::ALL {
                let (before, now) = (idle.value(index, quantity), self.value(index, quantity));
                let limit = quantity.limit(&idle.0[index]);
                if now > limit {
                    let title = quantity.title();
                    grown.push(format!(
                        "{name}: {title}: {before} before, {now} now, at most {limit} expected"
                    ));
                }
            }
        }
        grown
    }

    /// The same without memory, which changes without a cause.
    fn without_memory(&self) -> Self {
        let mut copy = self.clone();
        copy.0
            .iter_mut()
            .for_each(|of| of[Quantity::Memory as usize] = 0);
        copy
    }
}

/// The metrics of a program, in the text format.
struct Metrics(String);

impl Metrics {
    fn read(scene: &Scene, node: usize, address: &str) -> Self {
        Self(scene.nodes.sandbox.get(NODES[node], address, "/metrics").1)
    }

    /// The number of series.
    fn series(&self) -> usize {
        self.0.lines().filter(|line| !line.starts_with('#')).count()
    }

    /// The value of a series without labels.
    fn value(&self, name: &str) -> usize {
        let mut lines = self.0.lines().map(|line| line.split_once(' '));
        let found = lines.find_map(|l| l.filter(|(of, _)| *of == name));
        found.unwrap().1.parse().unwrap()
    }
}

/// Measures all the time.
#[derive(Debug)]
pub struct Recorder {
    scene: Arc<Scene>,
    started: Instant,
    moments: Vec<Moment>,
    samples: Arc<Mutex<Vec<(f64, Measurement)>>>,
    has_ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// All measurements, with the seconds since the start.
#[derive(Debug)]
pub struct Recording {
    /// In the order of time.
    pub samples: Vec<(f64, Measurement)>,
    /// What happened when.
    pub moments: Vec<Moment>,
}

impl Recorder {
    /// Starts to measure, for a load of this duration.
    pub fn start(scene: Arc<Scene>, duration: Duration) -> Self {
        let started = Instant::now();
        let samples = Arc::<Mutex<Vec<_>>>::default();
        let has_ended = Arc::new(AtomicBool::new(false));
        let interval = (duration / SAMPLES).max(SHORTEST_INTERVAL);
        let (of, taken, ended) = (scene.clone(), samples.clone(), has_ended.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let measurement = Measurement::take(&of);
                let at = started.elapsed().as_secs_f64();
                taken.lock().unwrap().push((at, measurement));
                std::thread::sleep(interval);
            }
        });
        Self {
            scene,
            started,
            moments: Vec::new(),
            samples,
            has_ended,
            thread,
        }
    }

    /// What the programs use when nothing happens: as much in each of several measurements.
    pub fn idle(&self) -> Measurement {
        const ALIKE: usize = 5;
        until("the programs are idle", || {
            let samples = self.samples.lock().unwrap();
            let (_, last) = samples.last()?;
            let recent = samples.iter().rev().take(ALIKE);
            let alike = |(_, s): &&(_, Measurement)| s.without_memory() == last.without_memory();
            (recent.filter(alike).count() == ALIKE).then(|| last.clone())
        })
    }

    /// Marks this moment in the plot.
    pub fn mark(&mut self, name: &str) {
        self.moments.push(Moment {
            name: name.to_owned(),
            at: self.started.elapsed().as_secs_f64(),
        });
    }

    /// Waits until the programs use as much as when they were idle; returns the last measurement.
    pub fn settled(&self, idle: &Measurement) -> Measurement {
        let settled = eventually(|| {
            let now = Measurement::take(&self.scene);
            now.growth(idle).is_empty().then_some(now)
        });
        settled.unwrap_or_else(|| Measurement::take(&self.scene))
    }

    /// Ends, and returns all measurements.
    pub fn stop(self) -> Recording {
        self.has_ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let samples = std::mem::take(&mut *self.samples.lock().unwrap());
        Recording {
            samples,
            moments: self.moments,
        }
    }
}
