//! The source of the mesh: a file or a control plane.

use std::sync::Arc;

use anyhow::Context;
use discovery::{Demand, Discovery, DiscoverySinks, DiscoveryStatus, MeshUpdate, Settings};
use mesh::{Mesh, MeshSettings, Text};
use telemetry::Metrics;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use crate::args::Args;
use crate::memory::empty_thread_cache;

/// A stream of mesh updates.
pub(crate) enum MeshChanges {
    /// Changes of the mesh file: the new mesh, or why it was rejected.
    File(
        UnboundedReceiver<Result<Mesh, mesh_file::LoadError>>,
        MeshSettings,
    ),
    /// The latest mesh from a control plane. Updates that come faster than they are applied are
    /// skipped.
    ControlPlane(watch::Receiver<MeshUpdate>),
}

impl MeshChanges {
    /// Waits for the next update; `None` if the mesh was rejected, which has been logged.
    pub(crate) async fn next(&mut self) -> Option<MeshUpdate> {
        match self {
            Self::File(changes, settings) => match changes.recv().await {
                Some(Ok(mesh)) => Some(update_from_file(mesh, settings)),
                Some(Err(e)) => {
                    tracing::error!(
                        event = "mesh_file_rejected",
                        "rejected the changed mesh file, keeping the previous mesh: {e}"
                    );
                    None
                }
                None => std::future::pending().await, // the watching thread has logged why it ended
            },
            Self::ControlPlane(updates) => match updates.changed().await {
                Ok(()) => Some(updates.borrow_and_update().clone()),
                Err(_) => std::future::pending().await, // discovery lives as long as the process
            },
        }
    }
}

/// The handle of the rest of the proxy to its control plane.
pub(crate) struct ControlPlane {
    pub(crate) status: Arc<DiscoveryStatus>,
    /// On-demand lookup of mesh addresses, if enabled.
    pub(crate) demand: Option<Arc<Demand>>,
}

/// Starts following the mesh. Returns the initial mesh, its changes, and the control plane, if
/// there is one.
pub(crate) fn follow(
    args: &Args,
    settings: Settings,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(MeshUpdate, MeshChanges, Option<ControlPlane>)> {
    let preferred = args.preferred_service_namespace.as_deref();
    let mesh_settings = MeshSettings {
        preferred_namespace: preferred.filter(|n| !n.is_empty()).map(Text::from),
        trust_domains: args.control.trust_domains(),
    };
    if let Some(path) = &args.mesh_file {
        let (changed, changes) = unbounded_channel();
        let mesh = mesh_file::watch(path, move |loaded| {
            let _ = changed.send(loaded); // the receiver lives as long as the process
            empty_thread_cache();
        })?;
        let initial = update_from_file(mesh, &mesh_settings);
        return Ok((initial, MeshChanges::File(changes, mesh_settings), None));
    }
    let server = settings
        .xds
        .context("settings without a mesh file must have a control plane")?;
    let status = Arc::new(DiscoveryStatus::new(
        server.address.to_string(),
        args.control.max_state_age,
    ));
    let (sender, changes) = watch::channel(MeshUpdate::default());
    let (ask, demands) = unbounded_channel();
    let on_demand = args.control.xds_on_demand;
    let demand = on_demand.then(|| Arc::new(Demand::new(ask)));
    let discovery = Discovery {
        server,
        node: settings.node,
        on_demand,
        mesh: mesh_settings,
    };
    let sinks = DiscoverySinks {
        mesh: sender,
        status: status.clone(),
        demand: demand.clone(),
        metrics: metrics.clone(),
    };
    discovery::follow(discovery, demands, sinks)?;
    let control_plane = ControlPlane { status, demand };
    Ok((
        MeshUpdate::default(),
        MeshChanges::ControlPlane(changes),
        Some(control_plane),
    ))
}

fn update_from_file(mut mesh: Mesh, settings: &MeshSettings) -> MeshUpdate {
    mesh.set(settings.clone());
    MeshUpdate {
        mesh: Arc::new(mesh),
        complete: true,
        push: 0,
    }
}
