//! A fake control plane: it serves discovery and certificates like istiod, with injectable faults.

mod authority;
mod certificates;
mod discovery;
mod grpc;
pub mod resources;
mod setup;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use api::certificate::CREATE;
use api::discovery::DELTA;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use netns::NetNs;
use tokio::sync::watch;

pub use authority::Authority;
pub use certificates::{CaFault, Certificates};
pub use discovery::{Discovery, ReceivedRequest};
pub use setup::{ControlPlaneSetup, echo, is_in_sync};

/// The name in the server's certificate.
pub const NAME: &str = "istiod.istio-system.svc";

/// The metadata of a request.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The value of `authorization`.
    pub authorization: String,
    /// The value of `clusterid`.
    pub cluster: String,
    /// All headers.
    pub headers: http::HeaderMap,
}

/// A running control plane. It ends with this value.
#[derive(Debug)]
pub struct ControlPlane {
    /// Discovery of the mesh.
    pub discovery: Arc<Discovery>,
    /// The certificate authority of the mesh.
    pub certificates: Arc<Certificates>,
    server: Arc<Mutex<Authority>>,
    folder: PathBuf,
    /// How often all connections were dropped, and whether new ones are served.
    access: watch::Sender<(u64, bool)>,
    /// The times of connections that were refused.
    refused_connections: Arc<Mutex<Vec<Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Listens in a network namespace, and writes its root into `folder` for the proxy.
    pub fn start(netns: &NetNs, address: SocketAddr, folder: &Path) -> Self {
        let listener = netns
            .run(|| std::net::TcpListener::bind(address))
            .unwrap()
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = Authority::new("the control plane's root");
        let mut plane = Self {
            discovery: Arc::default(),
            certificates: Arc::new(Certificates::new(Authority::new("the mesh's root"))),
            server: Arc::new(Mutex::new(server)),
            folder: folder.to_owned(),
            access: watch::Sender::new((0, true)),
            refused_connections: Arc::default(),
            thread: None,
        };
        plane.publish_root();
        let shared = (
            plane.discovery.clone(),
            plane.certificates.clone(),
            plane.server.clone(),
        );
        let (access, refused_connections) =
            (plane.access.subscribe(), plane.refused_connections.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(listener, shared, access, &refused_connections));
        });
        plane.thread = Some(thread);
        plane
    }

    /// Drops all connections; new ones are served.
    pub fn drop_connections(&self) {
        self.access.send_modify(|(count, _)| *count += 1);
    }

    /// Drops all connections and closes new ones at once; or serves new ones again.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.access
            .send_modify(|(count, open)| (*count, *open) = (*count + 1, !unreachable));
    }

    /// The times of all connections that were refused so far.
    pub fn refused_connections(&self) -> Vec<Instant> {
        self.refused_connections.lock().unwrap().clone()
    }

    /// Gives the server a certificate of a new root, which is not published.
    pub fn change_root(&self) {
        *self.server.lock().unwrap() = Authority::new("the control plane's next root");
        self.drop_connections();
    }

    /// Writes the current root where the proxy reads it.
    pub fn publish_root(&self) {
        let staged = self.folder.join("plane-root.new");
        std::fs::write(&staged, self.server.lock().unwrap().root_pem()).unwrap();
        std::fs::rename(staged, self.root_file()).unwrap();
    }

    /// The file of the root.
    pub fn root_file(&self) -> PathBuf {
        self.folder.join("plane-root.pem")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(std::mem::replace(
            &mut self.access,
            watch::Sender::new((0, false)),
        ));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Shared = (Arc<Discovery>, Arc<Certificates>, Arc<Mutex<Authority>>);

async fn serve(
    listener: std::net::TcpListener,
    shared: Shared,
    mut access: watch::Receiver<(u64, bool)>,
    refused_connections: &Mutex<Vec<Instant>>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            ended = access.changed() => match ended {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let (shared, mut access) = (shared.clone(), access.clone());
        let (count, open) = *access.borrow_and_update();
        if !open {
            refused_connections.lock().unwrap().push(Instant::now());
            continue;
        }
        let connection = async move {
            let acceptor = shared.2.lock().unwrap().server(NAME);
            let Ok(tls) = acceptor.accept(tcp).await else {
                return;
            };
            let mut builder = h2::server::Builder::new();
            builder
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 22);
            let Ok(mut http) = builder.handshake::<_, Bytes>(tls).await else {
                return;
            };
            while let Some(Ok((request, respond))) = http.accept().await {
                tokio::spawn(handle(request, respond, shared.clone()));
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = connection => {}
                _ = access.wait_for(|(now, _)| *now != count) => {}
            }
        });
    }
}

async fn handle(request: Request<RecvStream>, respond: SendResponse<Bytes>, shared: Shared) {
    let path = request.uri().path().to_owned();
    let field = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let head = RequestHead {
        authorization: field("authorization"),
        cluster: field("clusterid"),
        headers: request.headers().clone(),
    };
    let body = request.into_body();
    match path.as_str() {
        DELTA => shared.0.serve(head, body, respond).await,
        CREATE => shared.1.serve(head, body, respond).await,
        other => panic!("unknown method {other}"),
    }
}
