//! Which pods' applications run. Those of a pod end their connections before the pod is deleted, as
//! well-behaved applications do, so that no connection is cut by the deletion.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The applications of numbered pods. All run at first.
#[derive(Debug)]
pub struct Applications(Vec<Application>);

#[derive(Debug)]
struct Application {
    is_running: AtomicBool,
    /// The number of its connections.
    open: AtomicUsize,
}

/// A connection of a pod, for as long as this value lives.
#[derive(Debug)]
pub struct OpenConnection<'a>(&'a AtomicUsize);

impl Applications {
    /// The applications of the pods 0 to `pods` - 1.
    pub fn new(pods: usize) -> Self {
        let application = |_| Application {
            is_running: AtomicBool::new(true),
            open: AtomicUsize::new(0),
        };
        Self((0..pods).map(application).collect())
    }

    /// Whether those of a pod run. Connections should end otherwise.
    pub fn is_running(&self, pod: usize) -> bool {
        self.0[pod].is_running.load(Ordering::SeqCst)
    }

    /// The number of connections of a pod.
    pub fn open(&self, pod: usize) -> usize {
        self.0[pod].open.load(Ordering::SeqCst)
    }

    /// Counts a connection that a pod has accepted.
    pub fn accept(&self, pod: usize) -> OpenConnection<'_> {
        let open = &self.0[pod].open;
        open.fetch_add(1, Ordering::SeqCst);
        OpenConnection(open)
    }

    /// Counts a connection of a pod that is going to be opened; `None` if its applications do not
    /// run.
    pub fn connect(&self, pod: usize) -> Option<OpenConnection<'_>> {
        let connection = self.accept(pod); // before the check, so that `stop` waits for it
        self.is_running(pod).then_some(connection)
    }

    /// Stops those of a pod, and waits until its connections have ended.
    pub fn stop(&self, pod: usize) {
        self.0[pod].is_running.store(false, Ordering::SeqCst);
        while self.open(pod) > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts those of a pod again.
    pub fn resume(&self, pod: usize) {
        self.0[pod].is_running.store(true, Ordering::SeqCst);
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
