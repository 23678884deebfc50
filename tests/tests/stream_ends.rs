//! How connections end: what was sent before the end arrives, and the end as what it is, between
//! Underpass's proxies and with peers that end streams as Envoy does.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use netns::NetNs;
use netns::sockopt::{reset_on_close, unacknowledged};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use underpass_tests::certificates::certificate;
use underpass_tests::fake_waypoint::hbone;
use underpass_tests::http2_frames::{
    self, END_HEADERS, Frame, HEADERS, PREFACE, RST_STREAM, SETTINGS, connect_block, frame,
};
use underpass_tests::listener::accept;
use underpass_tests::raw_tunnel::{RawTunnels, accepted, data, declaration, end, reset};
use underpass_tests::sandbox::{MESH, PATIENCE, Sandbox, connect, listen, until};
use underpass_tests::tls_client::{TlsOptions, dial};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const CANCEL: u32 = 8;
const CONNECT_ERROR: u32 = 10;

/// A mesh in which `outsider` has a proxy, which the test plays.
fn mesh_with_fake_proxy() -> String {
    MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    )
}

/// More than an application that does not read takes from its proxy, and less than a stream window.
fn much() -> Vec<u8> {
    (0..900_000u32).map(|i| (i % 251) as u8).collect()
}

/// As much as the proxies take from an application while the other one does not read.
fn some() -> Vec<u8> {
    much()[..100_000].to_vec()
}

fn receives_little(socket: &impl AsFd) {
    SockRef::from(socket).set_recv_buffer_size(4096).unwrap();
}

/// Connects with a small receive buffer, so that the proxy has to keep what is not read.
///
/// # Errors
/// Those of connect(2); also the reset of a connection that was reset right after it was opened.
fn connect_slowly(netns: &NetNs, to: SocketAddr) -> std::io::Result<TcpStream> {
    let connected = netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        receives_little(&socket);
        socket.connect_timeout(&to.into(), PATIENCE)?;
        std::io::Result::Ok(TcpStream::from(socket))
    });
    let stream = connected.unwrap()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// How a connection ends, of which nothing is read before.
fn end_of(stream: std::io::Result<TcpStream>) -> Result<usize, ErrorKind> {
    let read = stream.and_then(|mut stream| stream.read(&mut [0]));
    read.map_err(|e| e.kind())
}

/// Reads everything after a pause, in which a proxy that loses data has time to do so.
fn read_late(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    stream.peek(&mut [0]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (all, end.map(|_| ()).map_err(|e| e.kind()))
}

/// Waits for an error of the socket, such as a reset, without reading or writing.
fn await_error(stream: &TcpStream) {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
    let seen = polled[0].revents().unwrap();
    assert!(seen.contains(PollFlags::POLLERR), "{seen:?}");
}

fn reset_now(stream: TcpStream) {
    reset_on_close(&stream).unwrap();
    drop(stream);
}

/// A client of a fake proxy at `outsider`, which answers with these frames.
fn answered(
    sandbox: &Sandbox,
    ip: IpAddr,
    answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> (std::io::Result<TcpStream>, RawTunnels) {
    let tunnels = RawTunnels::start(sandbox, "outsider", hbone(ip), OUTSIDER, answer);
    let to = SocketAddr::new(ip, 8080);
    (connect_slowly(&sandbox.pod("client"), to), tunnels)
}

#[test]
fn envoys_normal_ends_lose_no_data_and_reset_no_client() {
    let ends: [fn(u32) -> Vec<u8>; 4] = [
        |s| reset(s, CONNECT_ERROR),
        |s| reset(s, INTERNAL_ERROR),
        |s| reset(s, NO_ERROR),
        |s| [end(s), reset(s, NO_ERROR)].concat(),
    ];
    for (number, ending) in ends.into_iter().enumerate() {
        let sandbox = Sandbox::up_with(&format!("envoy-end-{number}"), &mesh_with_fake_proxy());
        for ip in sandbox.ips("outsider") {
            let answer = move |s| [accepted(s, false), data(s, &much()), ending(s)].concat();
            let (client, _tunnels) = answered(&sandbox, ip, answer);
            let mut client = client.unwrap();
            let (received, end) = read_late(&mut client);
            assert_eq!((received == much(), end), (true, Ok(())), "{number}, {ip}");
            // What the application still sends has no reader, and it is informed of that.
            until("writing fails", || client.write_all(&[0; 1 << 16]).err());
        }
    }
}

#[test]
fn resets_of_a_stream_arrive_after_its_data() {
    let resets: [(&str, bool, u32, bool); 4] = [
        ("exact", true, CONNECT_ERROR, true),
        ("aborted", false, CANCEL, true),
        ("without-data", false, CONNECT_ERROR, false),
        ("failed", false, INTERNAL_ERROR, false),
    ];
    for (name, is_exact, code, has_data) in resets {
        let sandbox = Sandbox::up_with(&format!("reset-{name}"), &mesh_with_fake_proxy());
        for ip in sandbox.ips("outsider") {
            let sent = if has_data { much() } else { Vec::new() };
            let bytes = sent.clone();
            let answer = move |s| [accepted(s, is_exact), data(s, &bytes), reset(s, code)].concat();
            let (client, _tunnels) = answered(&sandbox, ip, answer);
            let (received, end) = if has_data {
                read_late(&mut client.unwrap())
            } else {
                (Vec::new(), end_of(client).map(|_| ()))
            };
            assert_eq!(
                (received == sent, end),
                (true, Err(ErrorKind::ConnectionReset)),
                "{name}, {ip}: {} of {} bytes",
                received.len(),
                sent.len()
            );
        }
    }
}

#[test]
fn a_stream_reset_after_its_half_close_resets_the_application() {
    let sandbox = Sandbox::up_with("late-reset", &mesh_with_fake_proxy());
    for ip in sandbox.ips("outsider") {
        let answer = |s| [accepted(s, false), end(s), reset(s, CANCEL)].concat();
        let (client, _tunnels) = answered(&sandbox, ip, answer);
        match client {
            Ok(client) => await_error(&client),
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn a_reset_by_the_client_is_a_stream_error_after_its_data() {
    let sandbox = Sandbox::up_with("client-resets", &mesh_with_fake_proxy());
    for ip in sandbox.ips("outsider") {
        let answer = |s| [accepted(s, false), data(s, b"x")].concat();
        let (client, tunnels) = answered(&sandbox, ip, answer);
        let mut client = client.unwrap();
        client.read_exact(&mut [0]).unwrap(); // it is connected
        client.write_all(&some()[..50_000]).unwrap();
        until("the proxy has read it", || {
            (unacknowledged(&client).unwrap() == 0).then_some(())
        });
        reset_now(client);
        let reset: Frame = until("RST_STREAM", || {
            tunnels.frames().into_iter().find(|f| f.kind == RST_STREAM)
        });
        assert_eq!(reset.payload, CONNECT_ERROR.to_be_bytes());
        let frames = tunnels.frames();
        let sent = frames.iter().filter(|f| f.kind == http2_frames::DATA);
        assert_eq!(sent.map(|f| f.payload.len()).sum::<usize>(), 50_000);
    }
}

/// A client whose proxy is played: it opens a stream, sends data, and ends it.
async fn send_and_end<I: AsyncRead + AsyncWrite + Unpin>(
    io: &mut I,
    authority: &str,
    is_exact: bool,
    code: u32,
) {
    let mut block = connect_block(authority);
    if is_exact {
        block.extend(declaration());
    }
    let begin = [
        &PREFACE[..],
        &frame(SETTINGS, 0, 0, &[]),
        &frame(SETTINGS, http2_frames::ACK, 0, &[]),
        &frame(HEADERS, END_HEADERS, 1, &block),
    ];
    io.write_all(&begin.concat()).await.unwrap();
    // The windows precede the answer.
    while http2_frames::read(io).await.unwrap().kind != HEADERS {}
    io.write_all(&[data(1, &much()), reset(1, code)].concat())
        .await
        .unwrap();
    io.flush().await.unwrap();
}

#[tokio::test]
async fn a_server_receives_everything_before_the_end_of_its_clients_stream() {
    let sandbox = Sandbox::up("gateway-end");
    let listener = listen(&sandbox.pod("server"), 8080);
    receives_little(&listener);
    let listener = std::sync::Arc::new(listener);
    let ca = sandbox.folder().join("box/ca");
    for ip in sandbox.ips("server") {
        for (is_exact, code, expected) in [
            (false, CONNECT_ERROR, Ok(())),
            (false, INTERNAL_ERROR, Ok(())),
            (false, NO_ERROR, Ok(())),
            (true, CONNECT_ERROR, Err(ErrorKind::ConnectionReset)),
            (false, CANCEL, Err(ErrorKind::ConnectionReset)),
        ] {
            let listener = listener.clone();
            let server = tokio::task::spawn_blocking(move || {
                let (mut server, _) = accept(&listener).unwrap();
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                read_late(&mut server)
            });
            let identity = Some(certificate(&ca, CLIENT));
            let client = sandbox.pod("client");
            let mut io = dial(&client, ip, identity, TlsOptions::default())
                .await
                .unwrap();
            send_and_end(
                &mut io,
                &SocketAddr::new(ip, 8080).to_string(),
                is_exact,
                code,
            )
            .await;
            let (received, end) = server.await.unwrap();
            assert_eq!((received == much(), end), (true, expected), "{code}, {ip}");
        }
    }
}

/// The paths of a connection: by tunnel, and in plain text to a pod outside of the mesh and from
/// one.
const PATHS: [(&str, &str); 3] = [
    ("client", "server"),
    ("client", "outsider"),
    ("outsider", "server"),
];

/// Calls `check` with a connection's two ends and a name, for every path and family, and with the
/// ends exchanged; all at the same time.
fn for_every_path(name: &str, check: impl Fn(TcpStream, TcpStream, &str) + Sync) {
    let sandbox = Sandbox::up(name);
    std::thread::scope(|scope| {
        for (from, to) in PATHS {
            let listener = listen(&sandbox.pod(to), 9090 + u16::from(from == "outsider"));
            receives_little(&listener);
            for ip in sandbox.ips(to) {
                for is_client in [true, false] {
                    let (client, server) = pair(&sandbox.pod(from), &listener, ip);
                    let who = if is_client { "client" } else { "server" };
                    let what = format!("from {from} to {to} at {ip}, ended by the {who}");
                    let (this, other) = if is_client {
                        (client, server)
                    } else {
                        (server, client)
                    };
                    let check = &check;
                    scope.spawn(move || check(this, other, &what));
                }
            }
        }
    });
}

fn pair(from: &NetNs, listener: &TcpListener, ip: IpAddr) -> (TcpStream, TcpStream) {
    let port = listener.local_addr().unwrap().port();
    let client = connect_slowly(from, SocketAddr::new(ip, port)).unwrap();
    let (server, _) = accept(listener).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, server)
}

#[test]
fn data_before_a_reset_is_delivered() {
    for_every_path("data-then-reset", |mut this, mut other, what| {
        this.write_all(&some()).unwrap();
        until("the proxy has everything", || {
            (unacknowledged(&this).unwrap() == 0).then_some(())
        });
        reset_now(this);
        let (received, end) = read_late(&mut other);
        assert_eq!(
            (received.len(), end),
            (some().len(), Err(ErrorKind::ConnectionReset)),
            "{what}"
        );
    });
}

#[test]
fn a_reset_after_a_half_close_reaches_the_other_end() {
    for_every_path("reset-half-closed", |this, mut other, what| {
        this.shutdown(Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "{what}");
        reset_now(this);
        await_error(&other);
    });
}

#[test]
fn a_reset_reaches_an_end_that_does_not_read() {
    for_every_path("reset-unread", |mut this, other, what| {
        // More than fits: the proxies wait for the other end to read.
        this.set_nonblocking(true).unwrap();
        let blocked = || match this.write(&[7; 1 << 16]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Some(()),
            _ => None,
        };
        let mut blocked = blocked;
        until(what, &mut blocked);
        reset_now(this);
        await_error(&other);
    });
}

#[test]
fn a_client_that_leaves_ends_the_attempt_to_connect() {
    let sandbox = Sandbox::up_with("left-early", &mesh_with_fake_proxy());
    let left = "the client closed the connection before it was connected";
    for ip in sandbox.ips("outsider") {
        let (client, tunnels) = answered(&sandbox, ip, |_| Vec::new());
        until("the request", || {
            tunnels
                .frames()
                .iter()
                .any(|f| f.kind == HEADERS)
                .then_some(())
        });
        reset_now(client.unwrap());
        let to = format!("dst.addr={}", hbone(ip));
        sandbox.access_line("node-1", &["UP-PROXY-015", left, &to]);
        until("the stream is reset", || {
            tunnels
                .frames()
                .iter()
                .any(|f| f.kind == RST_STREAM)
                .then_some(())
        });
    }
}

#[test]
fn a_stream_that_is_reset_instead_of_answered_keeps_its_tunnel() {
    for code in [CANCEL, 7] {
        let sandbox = Sandbox::up_with(&format!("refused-{code}"), &mesh_with_fake_proxy());
        let ip = sandbox.ips("outsider")[0];
        let (first, tunnels) = answered(&sandbox, ip, move |s| reset(s, code));
        let client = sandbox.pod("client");
        let rest = (0..20).map(|_| connect(&client, SocketAddr::new(ip, 8080)));
        for stream in std::iter::once(first).chain(rest) {
            assert_eq!(end_of(stream), Err(ErrorKind::ConnectionReset));
        }
        let settings = |f: &&Frame| f.kind == SETTINGS && f.flags == 0;
        let opened = tunnels.frames().iter().filter(settings).count();
        let workers = std::thread::available_parallelism().unwrap().get();
        assert!(opened <= workers, "{opened} tunnels for {workers} workers");
    }
}
