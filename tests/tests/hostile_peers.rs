//! Malicious peers with a valid certificate: they affect no other connections.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use underpass_tests::certificates::certificate;
use underpass_tests::http2_frames::{
    self, END_HEADERS, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame,
};
use underpass_tests::sandbox::{self, PATIENCE, Sandbox, connect, read_line, serve_echo};
use underpass_tests::tls_client::{TlsOptions, dial};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn open(sandbox: &Sandbox, ip: IpAddr) -> Tls {
    let certificate = certificate(&sandbox.folder().join("box/ca"), CLIENT);
    dial(
        &sandbox.pod("client"),
        ip,
        Some(certificate),
        TlsOptions::default(),
    )
    .await
    .unwrap()
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap()
}

/// A stream to an echoing application.
struct EchoStream(SendStream<Bytes>, RecvStream);

impl EchoStream {
    /// Opens a stream; returns it with the first line of the application: the client's address.
    async fn open(requests: &SendRequest<Bytes>, request: Request<()>) -> (Self, String) {
        let (response, send) = requests
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut this = Self(send, response.into_body());
        let seen = this.line().await;
        (this, seen)
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let bytes = tokio::time::timeout(PATIENCE, self.1.data())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            let _ = self.1.flow_control().release_capacity(bytes.len());
            line.extend(bytes);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    async fn exchange(&mut self) {
        self.0
            .send_data(Bytes::from_static(b"still here\n"), false)
            .unwrap();
        assert_eq!(self.line().await, "still here");
    }
}

async fn good_tunnel(sandbox: &Sandbox, ip: IpAddr) -> SendRequest<Bytes> {
    let (requests, connection) = h2::client::handshake(open(sandbox, ip).await)
        .await
        .unwrap();
    tokio::spawn(connection);
    requests
}

/// Waits for a log line of the server's proxy, while connections make progress.
async fn logged(sandbox: &Sandbox, parts: &[&str]) -> String {
    let found = async {
        loop {
            let log = sandbox.log("node-2", "proxy");
            if let Some(line) = log.lines().find(|l| parts.iter().all(|p| l.contains(p))) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .unwrap_or_else(|_| panic!("no line with {parts:?}"))
}

/// A million bytes, each in its own frame, for an application that does not read.
#[tokio::test]
async fn unread_small_frames_do_not_end_the_tunnel() {
    const FRAMES: usize = 1_000_000;
    let sandbox = Sandbox::up("unread-frames");
    serve_echo(&sandbox.pod("server"), 8080);
    let unread = sandbox::listen(&sandbox.pod("server"), 9090);
    let ip = sandbox.ips("server")[0];
    let at = |port: u16| SocketAddr::new(ip, port).to_string();
    let requests = good_tunnel(&sandbox, ip).await;
    let (mut healthy, _) = EchoStream::open(&requests, connect_to(&at(8080))).await;
    let (response, mut send) = requests
        .clone()
        .ready()
        .await
        .unwrap()
        .send_request(connect_to(&at(9090)), false)
        .unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    let stalled = unread.accept().unwrap();
    for number in 0..FRAMES {
        send.reserve_capacity(1);
        let granted = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        granted.unwrap().unwrap();
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        if number % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    healthy.exchange().await;
    drop(stalled);
}

#[tokio::test]
async fn claims_in_a_peers_headers_are_ignored() {
    let sandbox = Sandbox::up("spoofed");
    serve_echo(&sandbox.pod("server"), 8080);
    for (ip, client) in sandbox.ips("server").into_iter().zip(sandbox.ips("client")) {
        let requests = good_tunnel(&sandbox, ip).await;
        let mut request = connect_to(&SocketAddr::new(ip, 8080).to_string());
        let claims = [
            ("forwarded", "for=\"10.77.1.3:1\";host=elsewhere.example"),
            ("x-forwarded-for", "10.77.1.3"),
            (
                "baggage",
                "k8s.namespace.name=kube-system,k8s.pod.name=spoofed,service.name=spoofed",
            ),
        ];
        for (name, value) in claims {
            request
                .headers_mut()
                .append(name, HeaderValue::from_static(value));
        }
        // The same as if it came from another network, of which the mesh names no gateway.
        let mut foreign = connect_to(&SocketAddr::new(ip, 8080).to_string());
        *foreign.headers_mut() = request.headers().clone();
        let elsewhere = HeaderValue::from_static("elsewhere");
        foreign
            .headers_mut()
            .insert("x-forwarded-network", elsewhere);
        drop(EchoStream::open(&requests, foreign).await);
        let (sibling, seen) = EchoStream::open(&requests, request).await;
        assert_eq!(
            seen,
            client.to_string(),
            "the application sees the real client"
        );
        drop(sibling);
        drop(requests);
        let client = SocketAddr::new(client, 0).to_string();
        let from = format!("src.addr={}", client.trim_end_matches('0'));
        let identity = format!("src.identity=\"{CLIENT}\"");
        let workload = "src.workload=\"client\"";
        logged(
            &sandbox,
            &["direction=\"inbound\"", &from, &identity, workload],
        )
        .await;
        let log = sandbox.log("node-2", "proxy");
        let mut lines = log.lines().filter(|l| l.contains("\taccess\t"));
        assert!(lines.all(|l| !l.contains("spoofed")), "{log}");
    }
    let metrics = sandbox.get("node-2", "127.0.0.1:15020", "/metrics").1;
    assert!(!metrics.contains("spoofed"), "{metrics}");
}

#[tokio::test]
async fn bad_requests_leave_other_streams_of_their_tunnel_open() {
    let sandbox = Sandbox::up("bad-requests");
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let requests = good_tunnel(&sandbox, ip).await;
        let good = SocketAddr::new(ip, 8080).to_string();
        let (mut sibling, _) = EchoStream::open(&requests, connect_to(&good)).await;
        let too_large = |mut request: Request<()>| {
            for index in 0..5 {
                let name: http::HeaderName = format!("x-large-{index}").parse().unwrap();
                request
                    .headers_mut()
                    .insert(name, HeaderValue::from_bytes(&[b'a'; 15_000]).unwrap());
            }
            request
        };
        let get = Request::builder()
            .method(Method::GET)
            .uri(format!("https://{good}/"))
            .body(())
            .unwrap();
        let cases = [
            ("a GET", get, 400),
            ("no port", connect_to("10.77.2.2"), 400),
            ("another address", connect_to("192.0.2.1:80"), 400),
            ("an unknown name", connect_to("nowhere.example:80"), 503),
            ("headers of 75,000 bytes", too_large(connect_to(&good)), 431),
        ];
        for (what, request, expected) in cases {
            let (response, _send) = requests
                .clone()
                .ready()
                .await
                .unwrap()
                .send_request(request, false)
                .unwrap();
            match response.await {
                Ok(response) => assert_eq!(response.status().as_u16(), expected, "{what}"),
                Err(e) => assert!(e.is_reset(), "{what}: {e}"),
            }
            sibling.exchange().await;
        }
    }
    assert!(!sandbox.log("node-2", "proxy").contains("panicked"));
}

fn rapid_resets(ip: IpAddr) -> impl Fn(u32) -> Vec<u8> {
    let block = http2_frames::connect_block(&SocketAddr::new(ip, 8080).to_string());
    move |index| {
        let stream = 2 * index + 1;
        let cancel = 8_u32.to_be_bytes();
        [
            frame(HEADERS, END_HEADERS, stream, &block),
            frame(RST_STREAM, 0, stream, &cancel),
        ]
        .concat()
    }
}

/// Sends `count` chunks from `next`, until the proxy ends the tunnel. Returns the error code of its
/// GOAWAY.
async fn flood(mut io: Tls, count: u32, next: impl Fn(u32) -> Vec<u8>, read: bool) -> Option<u32> {
    let begin = [
        &PREFACE[..],
        &frame(SETTINGS, 0, 0, &[]),
        &frame(SETTINGS, http2_frames::ACK, 0, &[]),
    ]
    .concat();
    io.write_all(&begin).await.unwrap();
    let (mut from, mut to) = tokio::io::split(io);
    let write = async {
        for chunk in 0..count / 100 {
            let bytes: Vec<u8> = (chunk * 100..chunk * 100 + 100).flat_map(&next).collect();
            // The proxy may stop reading from a peer that does not read.
            match tokio::time::timeout(Duration::from_secs(2), to.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    };
    let watch = async {
        if !read {
            return std::future::pending().await;
        }
        loop {
            let Ok(frame) = http2_frames::read(&mut from).await else {
                return None;
            };
            if frame.kind == GOAWAY {
                return Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
    };
    let both = async {
        tokio::pin!(watch);
        tokio::select! {
            () = write => tokio::time::timeout(Duration::from_secs(2), watch).await.unwrap_or(None),
            code = &mut watch => code,
        }
    };
    let code = both.await;
    // The rest carries no information.
    let _ = tokio::time::timeout(Duration::from_millis(1), from.read(&mut [0])).await;
    code
}

fn memory(pid: u64) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        / 1024
}

#[tokio::test]
async fn floods_affect_only_their_sender() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let sandbox = Sandbox::up("floods");
    serve_echo(&sandbox.pod("server"), 8080);
    let pid = sandbox.node("node-2")["proxy_pid"].as_u64().unwrap();
    for ip in sandbox.ips("server") {
        let requests = good_tunnel(&sandbox, ip).await;
        let to = SocketAddr::new(ip, 8080);
        let (mut sibling, _) = EchoStream::open(&requests, connect_to(&to.to_string())).await;
        let before = memory(pid);
        let ended = flood(open(&sandbox, ip).await, 20_000, rapid_resets(ip), true).await;
        assert_eq!(
            ended,
            Some(ENHANCE_YOUR_CALM),
            "a flood of resets ends the tunnel"
        );
        logged(
            &sandbox,
            &[
                "UP-PROXY-007",
                &format!("dst.addr={}", SocketAddr::new(ip, 15008)),
            ],
        )
        .await;
        sibling.exchange().await;
        for read in [true, false] {
            for flooded in [PING, SETTINGS] {
                let payload: &[u8] = if flooded == PING { &[0; 8] } else { &[] };
                let _ = flood(
                    open(&sandbox, ip).await,
                    200_000,
                    |_| frame(flooded, 0, 0, payload),
                    read,
                )
                .await;
                sibling.exchange().await;
            }
        }
        let grown = memory(pid).saturating_sub(before);
        assert!(grown < 64, "memory has grown by {grown} MiB");
        let mut stream = connect(&sandbox.pod("neighbour"), to).unwrap();
        read_line(&mut stream).unwrap();
    }
    assert!(!sandbox.log("node-2", "proxy").contains("panicked"));
}
