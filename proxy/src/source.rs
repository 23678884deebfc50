//! Where the mesh comes from: a file, or a control plane.

use std::sync::Arc;

use anyhow::Context;
use mesh::Mesh;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use crate::args::Args;
use crate::control::{self, Demand, Discovery, Newest, Outlets, Settings, Status};
use crate::telemetry::Metrics;

/// The namespace whose services go before others.
type Preferred = Option<String>;

/// Changes of the mesh, as they come.
pub(crate) enum Changes {
    /// Of the file: the new mesh, or why it is not taken.
    File(UnboundedReceiver<Result<Mesh, mesh_file::LoadError>>, Preferred),
    /// Of a control plane: the newest, for there may have been more than anybody could look at.
    ControlPlane(watch::Receiver<Newest>),
}

impl Changes {
    /// The next mesh; `None` when there is none yet, but a reason that has been told.
    pub(crate) async fn next(&mut self) -> Option<Newest> {
        match self {
            Self::File(changes, preferred) => match changes.recv().await {
                Some(Ok(mesh)) => Some(of_file(mesh, preferred)),
                Some(Err(e)) => {
                    tracing::error!("the mesh that was read last stays in force: {e}");
                    None
                }
                None => std::future::pending().await, // the thread has said why
            },
            Self::ControlPlane(newest) => match newest.changed().await {
                Ok(()) => Some(newest.borrow_and_update().clone()),
                Err(_) => std::future::pending().await, // it ends with the process
            },
        }
    }
}

/// A control plane, as the rest of the proxy knows it.
pub(crate) struct Plane {
    pub(crate) status: Arc<Status>,
    /// Where addresses are asked for one by one.
    pub(crate) demand: Option<Arc<Demand>>,
}

/// Begins to follow the mesh: as it is now, its changes, and how the proxy stands with the control plane, if there is one.
pub(crate) fn begin(
    args: &Args,
    settings: Settings,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Newest, Changes, Option<Plane>)> {
    let preferred = args.preferred_service_namespace.clone().filter(|n| !n.is_empty());
    if let Some(path) = &args.mesh_file {
        let (changed, changes) = unbounded_channel();
        let mesh = mesh_file::watch(path, move |loaded| {
            let _ = changed.send(loaded); // nobody listens only when the process ends
        })?;
        return Ok((of_file(mesh, &preferred), Changes::File(changes, preferred), None));
    }
    let server = settings.xds.context("without a mesh file there is a control plane")?;
    let status = Arc::new(Status::new(server.address.to_string(), args.control.max_state_age));
    let (newest, changes) = watch::channel(Newest::default());
    let (ask, demands) = unbounded_channel();
    let on_demand = args.control.xds_on_demand;
    let demand = on_demand.then(|| Arc::new(Demand::new(ask)));
    let discovery = Discovery { server, node: settings.node, on_demand, preferred_namespace: preferred };
    let outlets = Outlets { newest, status: status.clone(), demand: demand.clone(), metrics: metrics.clone() };
    control::follow(discovery, demands, outlets)?;
    let plane = Plane { status, demand };
    Ok((Newest::default(), Changes::ControlPlane(changes), Some(plane)))
}

fn of_file(mut mesh: Mesh, preferred: &Preferred) -> Newest {
    mesh.prefer(preferred.as_deref());
    Newest { mesh: Arc::new(mesh), complete: true, push: 0 }
}
