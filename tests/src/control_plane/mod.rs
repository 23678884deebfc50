//! A control plane of a test's own: it serves discovery and certificates as istiod does, and misbehaves when it is told to.

mod authority;
mod certificates;
mod discovery;
mod grpc;
pub mod resources;
mod scene;

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
pub use discovery::{Discovery, Said};
pub use scene::{Scene, say};

/// The name in the server's certificate.
pub const NAME: &str = "istiod.istio-system.svc";

/// What a request said besides its messages.
#[derive(Debug, Clone)]
pub struct Head {
    /// All of `authorization`.
    pub authorization: String,
    /// All of `clusterid`.
    pub cluster: String,
    /// Whatever else a test wants to see.
    pub headers: http::HeaderMap,
}

/// A running control plane. It ends with this value.
#[derive(Debug)]
pub struct ControlPlane {
    /// The mesh.
    pub discovery: Arc<Discovery>,
    /// The certificates.
    pub certificates: Arc<Certificates>,
    server: Arc<Mutex<Authority>>,
    folder: PathBuf,
    /// Counts how often all connections were cut; the number says whether anybody is let in.
    access: watch::Sender<(u64, bool)>,
    /// When somebody came while nobody was there.
    knocks: Arc<Mutex<Vec<Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Listens in a namespace. Its root is written into `folder`, where the proxy finds it.
    pub fn start(netns: &NetNs, address: SocketAddr, folder: &Path) -> Self {
        let listener = netns.run(|| std::net::TcpListener::bind(address)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = Authority::new("the control plane's own");
        let mut plane = Self {
            discovery: Arc::default(),
            certificates: Arc::new(Certificates::new(Authority::new("the mesh"))),
            server: Arc::new(Mutex::new(server)),
            folder: folder.to_owned(),
            access: watch::Sender::new((0, true)),
            knocks: Arc::default(),
            thread: None,
        };
        plane.write_root();
        let shared = (plane.discovery.clone(), plane.certificates.clone(), plane.server.clone());
        let (access, knocks) = (plane.access.subscribe(), plane.knocks.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, shared, access, &knocks));
        });
        plane.thread = Some(thread);
        plane
    }

    /// Cuts all connections; the next ones are served.
    pub fn cut(&self) {
        self.access.send_modify(|(count, _)| *count += 1);
    }

    /// Nobody is there any more: connections are cut, and new ones are closed as soon as they are open. Or somebody is again.
    pub fn away(&self, away: bool) {
        self.access.send_modify(|(count, open)| (*count, *open) = (*count + 1, !away));
    }

    /// When somebody came while it was away, from the beginning.
    pub fn knocks(&self) -> Vec<Instant> {
        self.knocks.lock().unwrap().clone()
    }

    /// Gives the server a certificate of another root, which it tells nobody.
    pub fn change_root(&self) {
        *self.server.lock().unwrap() = Authority::new("the control plane's next");
        self.cut();
    }

    /// Writes the root where the proxy finds it.
    pub fn write_root(&self) {
        let staged = self.folder.join("plane-root.new");
        std::fs::write(&staged, self.server.lock().unwrap().root_pem()).unwrap();
        std::fs::rename(staged, self.root_file()).unwrap();
    }

    /// Where the root is.
    pub fn root_file(&self) -> PathBuf {
        self.folder.join("plane-root.pem")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(std::mem::replace(&mut self.access, watch::Sender::new((0, false))));
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
    knocks: &Mutex<Vec<Instant>>,
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
            knocks.lock().unwrap().push(Instant::now());
            continue;
        }
        let connection = async move {
            let acceptor = shared.2.lock().unwrap().server(NAME);
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 22);
            let Ok(mut http) = builder.handshake::<_, Bytes>(tls).await else { return };
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
    let field = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let head =
        Head { authorization: field("authorization"), cluster: field("clusterid"), headers: request.headers().clone() };
    let body = request.into_body();
    match path.as_str() {
        DELTA => shared.0.serve(head, body, respond).await,
        CREATE => shared.1.serve(head, body, respond).await,
        other => panic!("{other} is no method"),
    }
}
