//! Faulty clients and servers of the proxies, and applications that connect to the latter.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::faulty::Fault;
use super::scene::{FAULTY, STEADY, Scene, addresses};
use super::service::Service;
use super::tally::Tally;
use super::traffic::Background;
use crate::certificates::{acceptor, certificate};
use crate::fake_waypoint::hbone;
use crate::listener::connect_async;
use crate::sandbox::until;

/// Faulty clients, and applications that connect to faulty servers, each with one connection at a
/// time.
const CLIENTS: usize = 4;
/// The longest silence, in milliseconds.
const LONGEST_HOLD: u64 = 4000;
/// How long an application waits for a faulty server, at most, in milliseconds.
const LONGEST_WAIT: u64 = 3000;
/// Longest pause between two connections of a client, in milliseconds.
const PAUSE: u64 = 200;

/// All faulty peers.
#[derive(Debug)]
pub struct FaultyPeers(Background);

impl FaultyPeers {
    /// Starts them.
    pub fn start(scene: Arc<Scene>, tally: Arc<Tally>, mut rng: Rng) -> Self {
        Self(Background::start(move || {
            for pod in FAULTY {
                for ip in addresses(pod) {
                    let (scene, tally, rng) = (scene.clone(), tally.clone(), rng.fork());
                    serve(scene, tally, pod, hbone(ip), rng);
                }
            }
            for _ in 0..CLIENTS {
                spawn_local(attack(scene.clone(), tally.clone(), rng.fork()));
                spawn_local(connect_to_faulty(scene.clone(), tally.clone(), rng.fork()));
            }
        }))
    }

    /// Ends them: all their connections are closed.
    pub fn end(self) {
        drop(self.0);
    }
}

/// Plays the proxy of a pod.
fn serve(scene: Arc<Scene>, tally: Arc<Tally>, pod: usize, at: SocketAddr, mut rng: Rng) {
    let bind = || std::net::TcpListener::bind(at);
    // An IPv6 address is usable only when the kernel has found no duplicate.
    let listener = until("the address is usable", || {
        scene.pod(pod).run(bind).unwrap().ok()
    });
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let acceptor = acceptor(&scene.nodes.sandbox, &Scene::faulty_identity(pod));
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let fault = Fault::random(&mut rng, LONGEST_HOLD);
            tally.count(format!("faulty servers at {:?}", fault.stage));
            spawn_local(fault.play_server(tcp, acceptor.clone()));
        }
    });
}

/// Opens faulty tunnels to proxies.
async fn attack(scene: Arc<Scene>, tally: Arc<Tally>, mut rng: Rng) {
    let authority = scene.nodes.sandbox.folder().join("box/ca");
    loop {
        let (from, to) = (rng.usize(FAULTY), rng.usize(STEADY));
        let ip = addresses(to)[rng.usize(0..2)];
        let fault = Fault::random(&mut rng, LONGEST_HOLD);
        tally.count(format!("faulty clients at {:?}", fault.stage));
        let identity = Scene::faulty_identity(from);
        let has_certificate = rng.u32(0..4) > 0;
        let certificate = has_certificate.then(|| certificate(&authority, &identity));
        let destination = SocketAddr::new(ip, Service::Echo.port()).to_string();
        match connect_async(scene.pod(from), hbone(ip), Some(istio::mark::PROXY)).await {
            Ok(tcp) => drop(fault.play_client(tcp, certificate, &destination).await),
            Err(e) => tally.fault(format!("connection to the proxy at {ip}: {e}")),
        }
        sleep(Duration::from_millis(rng.u64(0..PAUSE))).await;
    }
}

/// Connects to faulty servers. Whether that succeeds is not judged.
async fn connect_to_faulty(scene: Arc<Scene>, tally: Arc<Tally>, mut rng: Rng) {
    loop {
        let to = addresses(rng.usize(FAULTY))[rng.usize(0..2)];
        let to = SocketAddr::new(to, Service::Echo.port());
        let from = rng.usize(STEADY);
        let patience = Duration::from_millis(rng.u64(0..LONGEST_WAIT));
        tally.count("connections to faulty servers");
        let _ = timeout(patience, send_and_wait(&scene, from, to, rng.bool())).await;
        sleep(Duration::from_millis(rng.u64(0..PAUSE))).await;
    }
}

/// Sends until nothing more is accepted, and waits for the end.
async fn send_and_wait(
    scene: &Scene,
    from: usize,
    to: SocketAddr,
    ends_by_reset: bool,
) -> io::Result<()> {
    let mut stream = connect_async(scene.pod(from), to, None).await?;
    if ends_by_reset {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    stream.write_all(&[7; 4 << 20]).await
}
