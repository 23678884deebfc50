//! The proxy's end of a tunnel, against a peer with a real certificate that asks for what it likes.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use rcgen::{CertificateParams, KeyPair};
use underpass_tests::certificates::{acceptor, certificate};
use underpass_tests::listener::listening_ports;
use underpass_tests::peer::{Speech, dial};
use underpass_tests::sandbox::{MESH, PATIENCE, Sandbox, connect, read_line, serve_echo, until};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

/// A tunnel as the pod `client` has it.
async fn tunnel(sandbox: &Sandbox, ip: IpAddr) -> SendRequest<Bytes> {
    let certificate = certificate(&sandbox.folder().join("box/ca"), CLIENT);
    let stream = dial(&sandbox.pod("client"), ip, Some(certificate), Speech::default()).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn status(requests: &SendRequest<Bytes>, request: Request<()>) -> Result<StatusCode, h2::Error> {
    let mut requests = requests.clone().ready().await?;
    let (response, _send) = requests.send_request(request, false)?;
    Ok(response.await?.status())
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}

#[tokio::test]
async fn each_request_gets_the_status_that_the_interface_says() {
    let sandbox = Sandbox::up("statuses");
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        let at = |port: u16| SocketAddr::new(ip, port).to_string();
        let get = Request::builder().method(Method::GET).uri(format!("https://{}/", at(8080))).body(()).unwrap();
        let cases = [
            (connect_to(&at(8080)), 200),
            (connect_to("server.default.svc.cluster.local:80"), 200),
            (get, 400),
            (connect_to(&SocketAddr::new(sandbox.ips("neighbour")[0], 8080).to_string()), 400),
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
            let got = status(&requests, request).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(got.as_u16(), expected, "{what}");
        }
    }
    sandbox.set_policies("  - { name: nobody, namespace: default, scope: Namespace, action: Deny, rules: [[[{ principals: [Presence] }]]] }");
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        let deadline = std::time::Instant::now() + PATIENCE;
        let to = SocketAddr::new(ip, 8080).to_string();
        while status(&requests, connect_to(&to)).await.unwrap() != StatusCode::UNAUTHORIZED {
            assert!(std::time::Instant::now() < deadline, "the policy does not come into force");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn strange_headers_harm_nobody() {
    let sandbox = Sandbox::up("headers");
    serve_echo(&sandbox.pod("server"), 8080);
    let strange: [(&str, Vec<u8>); 8] = [
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
        for (name, value) in &strange {
            let mut request = connect_to(&SocketAddr::new(ip, 8080).to_string());
            request.headers_mut().insert(*name, http::HeaderValue::from_bytes(value).unwrap());
            assert_eq!(status(&requests, request).await.unwrap(), 200, "{name}");
        }
    }
    assert!(!sandbox.log("node-2", "proxy").contains("panicked"));
}

#[tokio::test]
async fn only_a_peer_of_the_own_trust_domain_gets_a_tunnel() {
    let sandbox = Sandbox::up("peers");
    let from = sandbox.pod("client");
    let ca = sandbox.folder().join("box/ca");
    let foreign = sandbox.folder().join("foreign-ca");
    std::fs::create_dir_all(&foreign).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    for (name, text) in [("root-cert.pem", &root), ("ca-cert.pem", &root), ("ca-key.pem", &key.serialize_pem())] {
        std::fs::write(foreign.join(name), text).unwrap();
    }
    let refused = || {
        [
            ("no certificate", None, Speech::default()),
            ("a certificate of another authority", Some(certificate(&foreign, CLIENT)), Speech::default()),
            ("another trust domain", Some(certificate(&ca, "spiffe://other/ns/default/sa/client")), Speech::default()),
            ("no identity of Istio's form", Some(certificate(&ca, "spiffe://cluster.local/client")), Speech::default()),
            ("only HTTP/1.1", Some(certificate(&ca, CLIENT)), Speech { alpn: vec![b"http/1.1"], ..Speech::default() }),
        ]
    };
    for ip in sandbox.ips("server") {
        for (what, certificate, speech) in refused() {
            // In TLS 1.3 the client may think that all is well until the server has looked at its certificate.
            let opened = match dial(&from, ip, certificate, speech).await {
                Err(_) => false,
                Ok(stream) => match h2::client::handshake::<_>(stream).await {
                    Err(_) => false,
                    Ok((requests, connection)) => {
                        tokio::spawn(connection);
                        status(&requests, connect_to(&SocketAddr::new(ip, 8080).to_string())).await.is_ok()
                    }
                },
            };
            assert!(!opened, "a tunnel to {ip} was opened with {what}");
        }
        let at = SocketAddr::new(ip, 15008).to_string();
        sandbox.access_line("node-2", &["UP-PROXY-005", "trust domain is other", &at]);
        let requests = tunnel(&sandbox, ip).await;
        let nobody = SocketAddr::new(ip, 9).to_string();
        assert_eq!(status(&requests, connect_to(&nobody)).await.unwrap(), 503, "and a good one is served");
    }
}

#[test]
fn tunnels_to_a_pod_that_leaves_are_served_for_a_while() {
    let sandbox = Sandbox::up("linger");
    let (server, ips) = (sandbox.pod("server"), sandbox.ips("server"));
    serve_echo(&server, 8080);
    let is = |state: &str| until(state, || (sandbox.state("server") == state).then_some(()));
    is("enrolled");
    let server_out = "name: server, namespace: default, labels: { istio.io/dataplane-mode: none }, serviceAccount";
    sandbox.set_mesh(&MESH.replacen("name: server, namespace: default, serviceAccount", server_out, 1));
    is("leaving");
    // Their proxies have not heard of it: the application answers them in the name of their pods.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for ip in &ips {
            let requests = tunnel(&sandbox, *ip).await;
            assert_eq!(status(&requests, connect_to(&SocketAddr::new(*ip, 8080).to_string())).await.unwrap(), 200);
        }
    });
    drop(runtime); // and the tunnels with it
    is("skipped");
    until("the proxy's listeners are closed", || (!listening_ports(&server).contains(&15008)).then_some(()));
    assert!(server.run(redirect::read_back).unwrap().unwrap().is_empty(), "nothing of ours is left");
}

/// Where a test plays the proxy of a pod that is not captured.
fn listen(netns: &netns::NetNs) -> tokio::net::TcpListener {
    let listener = underpass_tests::sandbox::listen(netns, 15008);
    listener.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(listener).unwrap()
}

/// A mesh in which `outsider` is said to have a proxy; the test plays it.
fn with_impostor() -> String {
    MESH.replace("name: outsider, namespace: outside,", "name: outsider, namespace: outside, protocol: HBONE,")
}

#[tokio::test]
async fn a_tunnel_that_its_peer_drains_is_not_used_for_new_connections() {
    let sandbox = Sandbox::up_with("goaway", &with_impostor());
    let acceptor = acceptor(&sandbox, "spiffe://cluster.local/ns/outside/sa/outsider");
    let listener = listen(&sandbox.pod("outsider"));
    // Every tunnel takes one stream, says GOAWAY, and keeps that stream open.
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut tunnel = h2::server::handshake(acceptor.accept(tcp).await.unwrap()).await.unwrap();
                let mut open = Vec::new();
                while let Some(Ok((_request, mut respond))) = tunnel.accept().await {
                    let mut stream: h2::SendStream<Bytes> =
                        respond.send_response(http::Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from_static(b"here\n"), false).unwrap();
                    open.push((stream, respond, _request));
                    tunnel.graceful_shutdown();
                }
            });
        }
    });
    let (client, ips) = (sandbox.pod("client"), sandbox.ips("outsider"));
    let asked = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        // More than there are workers, so that each has met a tunnel that is closing.
        for ip in ips.into_iter().flat_map(|ip| [ip; 8]) {
            let mut stream = connect(&client, SocketAddr::new(ip, 8080)).unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), "here");
            open.push(stream);
        }
    });
    asked.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_not_talked_to() {
    let sandbox = Sandbox::up_with("impostor", &with_impostor());
    let acceptor = acceptor(&sandbox, "spiffe://cluster.local/ns/default/sa/neighbour");
    let listener = listen(&sandbox.pod("outsider"));
    for ip in sandbox.ips("outsider") {
        let mut client = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
        assert!(accepted.is_err(), "the handshake was completed");
        assert!(std::io::Read::read(&mut client, &mut [0; 1]).is_err(), "the application was not cut off");
        let reason = "the peer is spiffe://cluster.local/ns/default/sa/neighbour, expected one of spiffe://cluster.local/ns/outside/sa/outsider";
        sandbox.access_line("node-1", &["UP-PROXY-005", reason, &SocketAddr::new(ip, 15008).to_string()]);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_up_nobody_else() {
    let sandbox = Sandbox::up_with("silent-server", &with_impostor());
    serve_echo(&sandbox.pod("server"), 8080);
    let _silent = listen(&sandbox.pod("outsider"));
    let client = sandbox.pod("client");
    let to = sandbox.ips("outsider").into_iter().flat_map(|ip| [SocketAddr::new(ip, 8080); 3]);
    let mut waiting: Vec<_> = to.map(|to| connect(&client, to).unwrap()).collect();
    for ip in sandbox.ips("server") {
        read_line(&mut connect(&client, SocketAddr::new(ip, 8080)).unwrap()).unwrap();
    }
    for stream in &mut waiting {
        assert!(std::io::Read::read(stream, &mut [0; 1]).is_err(), "all that wait are told, in the same moment");
    }
    sandbox.access_line("node-1", &["UP-PROXY-005", "not done within 5 s"]);
}
