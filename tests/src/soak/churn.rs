//! Pods that are deleted and created again, each time with the certificate of another identity, and
//! policies.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::scene::{CHURNED, Scene, name};
use super::tally::Tally;
use crate::sandbox::until;

/// Time between two changes, in milliseconds.
const PAUSE: std::ops::Range<u64> = 20..800;
/// Most policies that match no connection.
const POLICIES: usize = 40;

/// Changes the mesh.
#[derive(Debug)]
pub struct Churn {
    scene: Arc<Scene>,
    tally: Arc<Tally>,
    rng: Rng,
    is_verbose: bool,
}

/// A change.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// A pod is deleted, and created again with another identity.
    Recreate(usize),
    /// Other policies, which may cut connections or allow them again.
    Policies { is_cut: bool },
}

impl Churn {
    /// Changes nothing yet.
    pub fn new(scene: Arc<Scene>, tally: Arc<Tally>, rng: Rng, is_verbose: bool) -> Self {
        Self {
            scene,
            tally,
            rng,
            is_verbose,
        }
    }

    /// Makes each kind of change on each node: some things exist from the first one on.
    pub fn warm_up(&mut self) {
        for pod in CHURNED {
            self.make(Change::Recreate(pod));
        }
        for is_cut in [true, false] {
            self.make(Change::Policies { is_cut });
        }
        self.scene.await_verified();
    }

    /// Makes random changes for this long. Afterwards, no policy is left that cuts connections.
    pub fn run(&mut self, duration: Duration) {
        let started = Instant::now();
        while started.elapsed() < duration {
            let change = self.random();
            self.make(change);
            std::thread::sleep(Duration::from_millis(self.rng.u64(PAUSE)));
        }
        self.make(Change::Policies { is_cut: false });
        self.scene.await_verified();
    }

    fn random(&mut self) -> Change {
        let pod = self.rng.usize(CHURNED);
        match self.rng.u32(0..10) {
            0..5 => Change::Recreate(pod),
            _ => Change::Policies {
                is_cut: self.rng.bool(),
            },
        }
    }

    fn make(&mut self, change: Change) {
        if self.is_verbose {
            println!("{:8.3} s  {change}", self.tally.seconds());
        }
        self.tally.count(change.kind());
        match change {
            Change::Recreate(pod) => self.recreate(pod),
            Change::Policies { is_cut } => {
                let count = self.rng.usize(0..POLICIES);
                let policies = (0..count).map(|_| self.rng.u32(..)).collect();
                self.scene.change(|mesh| {
                    mesh.is_cut = is_cut;
                    mesh.policies = policies;
                });
            }
        }
    }

    /// Deletes a pod that has no connections, and creates it with a service account that no pod had
    /// before.
    fn recreate(&self, pod: usize) {
        let scene = &self.scene;
        scene.applications.stop(pod);
        scene.nodes.delete(pod);
        scene.rename_account(pod);
        until(&format!("{} has its new identity", name(pod)), || {
            if let Err(e) = scene.nodes.create(pod) {
                self.tally.fault(format!("ADD of {}: {e}", name(pod)));
                return None;
            }
            let has_identity = scene.has_present_identity(pod);
            if !has_identity {
                scene.nodes.delete(pod); // the agent had not read the mesh file yet
            }
            has_identity.then_some(())
        });
        scene.await_certificate(pod);
        scene.applications.resume(pod);
    }
}

impl Change {
    fn kind(self) -> &'static str {
        match self {
            Self::Recreate(_) => "pods created again",
            Self::Policies { .. } => "policies changed",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recreate(pod) => write!(f, "{}: delete and create", name(*pod)),
            Self::Policies { is_cut } => write!(f, "policies, cutting connections: {is_cut}"),
        }
    }
}
