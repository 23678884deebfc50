//! The proxy as server and client of HBONE tunnels, against peers that the test controls.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use netns::sockopt::reset_on_close;
use rcgen::{CertificateParams, KeyPair};
use underpass_tests::certificates::{acceptor, certificate};
use underpass_tests::fake_waypoint::hbone;
use underpass_tests::http2_frames::{GOAWAY, RST_STREAM, frame};
use underpass_tests::listener::listening_ports;
use underpass_tests::raw_tunnel::{RawTunnels, accepted, data};
use underpass_tests::sandbox::{MESH, PATIENCE, Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::tls_client::{TlsOptions, dial};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

/// A tunnel from the pod `client`.
async fn tunnel(sandbox: &Sandbox, ip: IpAddr) -> SendRequest<Bytes> {
    let certificate = certificate(&sandbox.folder().join("box/ca"), CLIENT);
    let stream = dial(
        &sandbox.pod("client"),
        ip,
        Some(certificate),
        TlsOptions::default(),
    )
    .await
    .unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn status(
    requests: &SendRequest<Bytes>,
    request: Request<()>,
) -> Result<StatusCode, h2::Error> {
    let mut requests = requests.clone().ready().await?;
    let (response, _send) = requests.send_request(request, false)?;
    Ok(response.await?.status())
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap()
}

#[tokio::test]
async fn each_connect_request_gets_the_documented_status() {
    let sandbox = Sandbox::up("statuses");
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        let at = |port: u16| SocketAddr::new(ip, port).to_string();
        let get = Request::builder()
            .method(Method::GET)
            .uri(format!("https://{}/", at(8080)))
            .body(())
            .unwrap();
        let cases = [
            (connect_to(&at(8080)), 200),
            (connect_to("server.default.svc.cluster.local:80"), 200),
            (connect_to("Server.default.svc.cluster.local.:80"), 200),
            (get, 400),
            (connect_to(&format!("user@{}", at(8080))), 400),
            (
                connect_to(&SocketAddr::new(sandbox.ips("neighbour")[0], 8080).to_string()),
                400,
            ),
            (connect_to("10.96.0.10:80"), 400),
            (connect_to("127.0.0.1:8080"), 400),
            (connect_to("[::1]:8080"), 400),
            (connect_to("0.0.0.0:8080"), 400),
            (connect_to("[::]:8080"), 400),
            (connect_to("[::ffff:127.0.0.1]:8080"), 400),
            (connect_to("localhost:8080"), 503),
            (connect_to("nowhere.example:80"), 503),
            (connect_to("server.default.svc.cluster.local:81"), 503),
            (connect_to(&at(9)), 503),
            (connect_to(&at(15001)), 503),
            (connect_to(&at(15008)), 503),
            (connect_to(&at(15053)), 503),
        ];
        for (request, expected) in cases {
            let what = format!("{} {}", request.method(), request.uri());
            let got = status(&requests, request)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(got.as_u16(), expected, "{what}");
        }
    }
    sandbox.set_policies(
        "  - { name: deny-all, namespace: default, scope: Namespace, action: Deny, rules: [[[{ \
         principals: [Presence] }]]] }",
    );
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        let deadline = std::time::Instant::now() + PATIENCE;
        let to = SocketAddr::new(ip, 8080).to_string();
        while status(&requests, connect_to(&to)).await.unwrap() != StatusCode::UNAUTHORIZED {
            assert!(
                std::time::Instant::now() < deadline,
                "the policy does not take effect"
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn malformed_headers_leave_requests_accepted() {
    let sandbox = Sandbox::up("headers");
    serve_echo(&sandbox.pod("server"), 8080);
    let malformed: [(&str, Vec<u8>); 8] = [
        ("traceparent", format!("00-{}", "0".repeat(52)).into_bytes()),
        ("traceparent", b"x".to_vec()),
        ("baggage", b"=,=,,;;k8s.pod.name".to_vec()),
        ("baggage", vec![0xff; 100]),
        ("baggage", b"k8s.cluster.name=".repeat(500)),
        ("forwarded", b"for=;;;\"".to_vec()),
        ("x-forwarded-network", vec![0xfe; 8]),
        ("x-unheard-of", vec![b'a'; 20_000]),
    ];
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        for (name, value) in &malformed {
            let mut request = connect_to(&SocketAddr::new(ip, 8080).to_string());
            request
                .headers_mut()
                .insert(*name, http::HeaderValue::from_bytes(value).unwrap());
            assert_eq!(status(&requests, request).await.unwrap(), 200, "{name}");
        }
    }
    assert!(!sandbox.log("node-2", "proxy").contains("panicked"));
}

#[tokio::test]
async fn only_peers_of_the_trust_domain_get_a_tunnel() {
    let sandbox = Sandbox::up("peers");
    let from = sandbox.pod("client");
    let ca = sandbox.folder().join("box/ca");
    let foreign = sandbox.folder().join("foreign-ca");
    std::fs::create_dir_all(&foreign).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    for (name, text) in [
        ("root-cert.pem", &root),
        ("ca-cert.pem", &root),
        ("ca-key.pem", &key.serialize_pem()),
    ] {
        std::fs::write(foreign.join(name), text).unwrap();
    }
    let rejected = || {
        [
            ("no certificate", None, TlsOptions::default()),
            (
                "a certificate of another authority",
                Some(certificate(&foreign, CLIENT)),
                TlsOptions::default(),
            ),
            (
                "another trust domain",
                Some(certificate(
                    &ca,
                    "spiffe://foreign.example/ns/default/sa/client",
                )),
                TlsOptions::default(),
            ),
            (
                "an identity that is not of Istio's form",
                Some(certificate(&ca, "spiffe://cluster.local/client")),
                TlsOptions::default(),
            ),
            (
                "only HTTP/1.1",
                Some(certificate(&ca, CLIENT)),
                TlsOptions {
                    alpn: vec![b"http/1.1"],
                    ..TlsOptions::default()
                },
            ),
        ]
    };
    for ip in sandbox.ips("server") {
        for (what, certificate, speech) in rejected() {
            // In TLS 1.3 the client's handshake may succeed before the server has checked its
            // certificate.
            let opened = match dial(&from, ip, certificate, speech).await {
                Err(_) => false,
                Ok(stream) => match h2::client::handshake::<_>(stream).await {
                    Err(_) => false,
                    Ok((requests, connection)) => {
                        tokio::spawn(connection);
                        status(
                            &requests,
                            connect_to(&SocketAddr::new(ip, 8080).to_string()),
                        )
                        .await
                        .is_ok()
                    }
                },
            };
            assert!(!opened, "a tunnel to {ip} was opened with {what}");
        }
        let at = SocketAddr::new(ip, 15008).to_string();
        sandbox.access_line("node-2", &["UP-PROXY-005", "foreign.example", &at]);
        let requests = tunnel(&sandbox, ip).await;
        let closed = SocketAddr::new(ip, 9).to_string();
        assert_eq!(
            status(&requests, connect_to(&closed)).await.unwrap(),
            503,
            "a valid peer is served"
        );
    }
}

#[test]
fn leaving_pod_serves_new_tunnels_until_they_close() {
    let sandbox = Sandbox::up("linger");
    let (server, ips) = (sandbox.pod("server"), sandbox.ips("server"));
    serve_echo(&server, 8080);
    let is = |state: &str| until(state, || (sandbox.state("server") == state).then_some(()));
    is("enrolled");
    let server_out = "name: server, namespace: default, labels: { istio.io/dataplane-mode: none \
                      }, serviceAccount";
    sandbox.set_mesh(&MESH.replacen(
        "name: server, namespace: default, serviceAccount",
        server_out,
        1,
    ));
    is("leaving");
    // Other nodes' proxies may still open tunnels to the pod, and the application answers through
    // them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for ip in &ips {
            let requests = tunnel(&sandbox, *ip).await;
            assert_eq!(
                status(
                    &requests,
                    connect_to(&SocketAddr::new(*ip, 8080).to_string())
                )
                .await
                .unwrap(),
                200
            );
        }
    });
    drop(runtime); // closes the tunnels
    is("skipped");
    until("the proxy's listeners are closed", || {
        (!listening_ports(&server).contains(&15008)).then_some(())
    });
    assert!(
        server.run(redirect::read_back).unwrap().unwrap().is_empty(),
        "the pod's rules are removed"
    );
}

/// Listens on the tunnel port of a pod that is not captured, in place of a proxy.
fn listen(netns: &netns::NetNs) -> tokio::net::TcpListener {
    let listener = underpass_tests::sandbox::listen(netns, 15008);
    listener.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(listener).unwrap()
}

/// A mesh in which `outsider` has a proxy; the test acts as that proxy.
fn with_fake_proxy() -> String {
    MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    )
}

#[tokio::test]
async fn draining_tunnel_is_not_used_for_new_connections() {
    let sandbox = Sandbox::up_with("goaway", &with_fake_proxy());
    let acceptor = acceptor(&sandbox, "spiffe://cluster.local/ns/outside/sa/outsider");
    let listener = listen(&sandbox.pod("outsider"));
    // Every tunnel accepts one stream, sends GOAWAY, and keeps that stream open.
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tunnel = h2::server::handshake(acceptor.accept(tcp).await.unwrap())
                    .await
                    .unwrap();
                let mut open = Vec::new();
                while let Some(Ok((_request, mut respond))) = tunnel.accept().await {
                    let mut stream: h2::SendStream<Bytes> = respond
                        .send_response(http::Response::new(()), false)
                        .unwrap();
                    stream
                        .send_data(Bytes::from_static(b"here\n"), false)
                        .unwrap();
                    open.push((stream, respond, _request));
                    tunnel.graceful_shutdown();
                }
            });
        }
    });
    let (client, ips) = (sandbox.pod("client"), sandbox.ips("outsider"));
    let connections = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        // More connections than workers, so that each worker has a draining tunnel.
        for ip in ips.into_iter().flat_map(|ip| [ip; 8]) {
            let mut stream = connect(&client, SocketAddr::new(ip, 8080)).unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), "here");
            open.push(stream);
        }
    });
    connections.await.unwrap();
}

/// Connections that wait for the same new tunnel and do not fit into it open others.
#[test]
fn connections_at_once_open_as_many_tunnels_as_they_need() {
    let one_stream = [("POOL_MAX_STREAMS_PER_CONNECTION", "1")];
    let sandbox = Sandbox::up_in("tunnels-at-once", MESH, &one_stream);
    serve_echo(&sandbox.pod("server"), 8080);
    let to = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let client = sandbox.pod("client");
    std::thread::scope(|scope| {
        let open = || {
            let mut stream = connect(&client, to).unwrap();
            read_line(&mut stream).unwrap();
            stream
        };
        let opening: Vec<_> = (0..40).map(|_| scope.spawn(open)).collect();
        let _open: Vec<_> = opening.into_iter().map(|o| o.join().unwrap()).collect();
    });
}

/// All tunnels of a pool are drained, not only one.
#[test]
fn every_draining_tunnel_of_a_pool_is_skipped() {
    let one_stream = [("POOL_MAX_STREAMS_PER_CONNECTION", "1")];
    let sandbox = Sandbox::up_in("goaways", &with_fake_proxy(), &one_stream);
    let ip = sandbox.ips("outsider")[0];
    let drain = Arc::new(AtomicBool::new(false));
    let draining = drain.clone();
    let identity = "spiffe://cluster.local/ns/outside/sa/outsider";
    let tunnels = RawTunnels::start(&sandbox, "outsider", hbone(ip), identity, move |stream| {
        let answer = [accepted(stream, false), data(stream, b"here\n")].concat();
        if stream == 1 || !draining.load(Ordering::Relaxed) {
            answer
        } else {
            // As if this had been sent before the request arrived: the stream was not processed.
            let processed = [1u32.to_be_bytes(), 0u32.to_be_bytes()].concat();
            frame(GOAWAY, 0, 0, &processed)
        }
    });
    let connection = || {
        let mut stream = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        read_line(&mut stream).map(|line| (line, stream))
    };
    let workers = std::thread::available_parallelism().unwrap().get();
    let open: Vec<_> = (0..4 * workers).map(|_| connection().unwrap()).collect();
    drain.store(true, Ordering::Relaxed);
    for (_, stream) in open {
        reset_on_close(&stream).unwrap();
    }
    let resets = || {
        tunnels
            .frames()
            .iter()
            .filter(|f| f.kind == RST_STREAM)
            .count()
    };
    until("the streams are closed", || {
        (resets() == 4 * workers).then_some(())
    });
    for _ in 0..workers {
        assert_eq!(connection().unwrap().0, "here");
    }
}

#[tokio::test]
async fn server_with_an_unexpected_identity_is_rejected() {
    let sandbox = Sandbox::up_with("impostor", &with_fake_proxy());
    let acceptor = acceptor(&sandbox, "spiffe://cluster.local/ns/default/sa/neighbour");
    let listener = listen(&sandbox.pod("outsider"));
    for ip in sandbox.ips("outsider") {
        let mut client = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
        assert!(accepted.is_err(), "the handshake succeeded");
        assert!(
            std::io::Read::read(&mut client, &mut [0; 1]).is_err(),
            "the application's connection was not closed"
        );
        let found = "spiffe://cluster.local/ns/default/sa/neighbour";
        let expected = "spiffe://cluster.local/ns/outside/sa/outsider";
        let to = SocketAddr::new(ip, 15008).to_string();
        sandbox.access_line("node-1", &["UP-PROXY-005", found, expected, &to]);
    }
}

#[tokio::test]
async fn unresponsive_server_delays_no_other_connection() {
    let sandbox = Sandbox::up_with("silent-server", &with_fake_proxy());
    serve_echo(&sandbox.pod("server"), 8080);
    let _silent = listen(&sandbox.pod("outsider"));
    let client = sandbox.pod("client");
    let to = sandbox
        .ips("outsider")
        .into_iter()
        .flat_map(|ip| [SocketAddr::new(ip, 8080); 3]);
    let mut waiting: Vec<_> = to.map(|to| connect(&client, to).unwrap()).collect();
    for ip in sandbox.ips("server") {
        read_line(&mut connect(&client, SocketAddr::new(ip, 8080)).unwrap()).unwrap();
    }
    for stream in &mut waiting {
        assert!(
            std::io::Read::read(stream, &mut [0; 1]).is_err(),
            "all waiting connections are closed"
        );
    }
    for ip in sandbox.ips("outsider") {
        sandbox.access_line(
            "node-1",
            &["UP-PROXY-005", &SocketAddr::new(ip, 15008).to_string()],
        );
    }
}
