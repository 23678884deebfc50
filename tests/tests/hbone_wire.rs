//! The HBONE protocol as a peer sees it, and as docs/ztunnel.md describes it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use underpass_tests::certificates::{acceptor, certificate};
use underpass_tests::fake_waypoint::{FakeWaypoint, StreamAction, hbone};
use underpass_tests::http2_frames::{
    self, DATA, HEADERS, PING, PREFACE, SETTINGS, WINDOW_UPDATE, frame,
};
use underpass_tests::iptables::run;
use underpass_tests::raw_tunnel::{accepted, data};
use underpass_tests::sandbox::{
    MESH, PATIENCE, Sandbox, VIPS, connect, eventually, is_own_engine, read_line, serve_echo,
};
use underpass_tests::tls_client::{Certificate, TlsOptions, dial};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";
/// The setting for the compression of headers, which only the second tunnel engine sends.
const HEADER_TABLE_SIZE: u16 = 1;

/// A mesh in which `outsider` has a proxy, which the test plays.
fn mesh_with_fake_proxy() -> String {
    MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    )
}

fn of(sandbox: &Sandbox, identity: &str) -> Certificate {
    certificate(&sandbox.folder().join("box/ca"), identity)
}

async fn tunnel(sandbox: &Sandbox, ip: IpAddr) -> SendRequest<Bytes> {
    let stream = dial(
        &sandbox.pod("client"),
        ip,
        Some(of(sandbox, CLIENT)),
        TlsOptions::default(),
    )
    .await
    .unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn ask(requests: &SendRequest<Bytes>, authority: &str) -> Response<h2::RecvStream> {
    let mut requests = requests.clone().ready().await.unwrap();
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap();
    let (response, _send) = requests.send_request(request, false).unwrap();
    response
        .await
        .unwrap_or_else(|e| panic!("{authority}: {e}"))
}

#[test]
fn a_connect_request_names_client_and_destination() {
    let sandbox = Sandbox::up_with("connect-says", &mesh_with_fake_proxy());
    let mut parents = BTreeSet::new();
    for ip in sandbox.ips("outsider") {
        let played = FakeWaypoint::start(
            &sandbox,
            "outsider",
            hbone(ip),
            OUTSIDER,
            StreamAction::Echo("hello"),
        );
        let to = SocketAddr::new(ip, 8080);
        for _ in 0..2 {
            let mut stream = connect(&sandbox.pod("client"), to).unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), "hello");
            let seen = played.seen();
            let [(uri, headers)] = &seen[..] else {
                panic!("{seen:?}")
            };
            assert_eq!(*uri, to.to_string(), "no scheme and no path");
            let header = |name: &str| headers[name].to_str().unwrap();
            assert_eq!(
                header("forwarded"),
                format!("for=\"{}\"", stream.local_addr().unwrap())
            );
            let baggage: BTreeSet<_> = header("baggage").split(',').collect();
            assert!(
                baggage.contains("k8s.namespace.name=default"),
                "{baggage:?}"
            );
            let parent: Vec<_> = header("traceparent").split('-').collect();
            let lengths: Vec<_> = parent.iter().map(|p| p.len()).collect();
            assert_eq!(
                (lengths, parent[0], parent[3]),
                (vec![2, 32, 16, 2], "00", "00"),
                "{parent:?}"
            );
            assert!(
                parent.concat().bytes().all(|b| b.is_ascii_hexdigit()),
                "{parent:?}"
            );
            assert!(
                parents.insert(parent[1].to_owned()),
                "each connection has its own trace"
            );
            assert!(
                !headers.contains_key("x-forwarded-network"),
                "this header is only for gateways"
            );
        }
    }
}

/// Reads the SETTINGS and the connection window of the other end, and sends nothing.
async fn watch<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I) -> (Vec<(u16, u32)>, u32) {
    let first = http2_frames::read(io).await.unwrap();
    assert_eq!(first.kind, SETTINGS);
    let mut acknowledged = false;
    let mut window = 0;
    while !acknowledged || window == 0 {
        let next = http2_frames::read(io).await.unwrap();
        match next.kind {
            WINDOW_UPDATE => window = u32::from_be_bytes(next.payload[..4].try_into().unwrap()),
            SETTINGS => acknowledged = next.flags == http2_frames::ACK,
            _ => {}
        }
    }
    let mut settings = http2_frames::settings(&first);
    if is_own_engine() {
        assert!(settings.contains(&(HEADER_TABLE_SIZE, 0)), "{settings:?}");
        settings.retain(|(id, _)| *id != HEADER_TABLE_SIZE);
    }
    settings.sort_unstable();
    (settings, window)
}

/// Waits for a PING, does not answer it, and waits for the end of the connection.
async fn ignore_pings<I: AsyncRead + AsyncWrite + Unpin>(io: &mut I) {
    let pinged = async { while http2_frames::read(io).await.unwrap().kind != PING {} };
    tokio::time::timeout(PATIENCE, pinged)
        .await
        .expect("a PING");
    let over = async { while http2_frames::read(io).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, over)
        .await
        .expect("the end of the connection");
}

/// Envoy opens that many before it has received the settings, and repeats no request of a stream
/// that is refused.
#[tokio::test]
async fn as_many_streams_as_envoy_opens_before_it_knows_the_limit_are_accepted() {
    const STREAMS: u32 = 1024;
    let sandbox = Sandbox::up("burst");
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let certificate = Some(of(&sandbox, CLIENT));
        let client = sandbox.pod("client");
        let io = dial(&client, ip, certificate, TlsOptions::default());
        let mut io = io.await.unwrap();
        let block = http2_frames::connect_block(&SocketAddr::new(ip, 8080).to_string());
        let mut begin = [&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat();
        for number in 0..STREAMS {
            let stream = 2 * number + 1;
            begin.extend(frame(HEADERS, http2_frames::END_HEADERS, stream, &block));
        }
        io.write_all(&begin).await.unwrap();
        let mut answered = BTreeSet::new();
        let all = async {
            while answered.len() < STREAMS as usize {
                let frame = http2_frames::read(&mut io).await.unwrap();
                let is_reset = frame.kind == http2_frames::RST_STREAM;
                assert!(!is_reset, "after {}: {frame:?}", answered.len());
                if frame.kind == HEADERS {
                    // 0x88 is status 200; it may follow an update of the table's size.
                    let status = frame.payload.iter().find(|byte| *byte & 0xe0 != 0x20);
                    assert_eq!(status, Some(&0x88), "not accepted: {frame:?}");
                    answered.insert(frame.stream);
                }
            }
        };
        let all = tokio::time::timeout(PATIENCE, all).await;
        assert!(all.is_ok(), "{} were answered", answered.len());
    }
}

/// Settings 2 is ENABLE_PUSH, 3 MAX_CONCURRENT_STREAMS, 4 INITIAL_WINDOW_SIZE, 5 MAX_FRAME_SIZE, 6
/// MAX_HEADER_LIST_SIZE.
#[tokio::test]
async fn both_ends_send_the_documented_settings_and_pings() {
    let sandbox = Sandbox::up_with("on-the-wire", &mesh_with_fake_proxy());
    let all = (1 << 20) * 1024 - 65_535;
    let server = async |ip: IpAddr| {
        let mut io = dial(
            &sandbox.pod("client"),
            ip,
            Some(of(&sandbox, CLIENT)),
            TlsOptions::default(),
        )
        .await
        .unwrap();
        let begin = [&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat();
        io.write_all(&begin).await.unwrap();
        let (settings, window) = watch(&mut io).await;
        assert_eq!(
            settings,
            [(3, 1024), (4, 1 << 20), (5, 64 * 1024), (6, 64 * 1024)]
        );
        assert_eq!(window, all);
        io.write_all(&frame(SETTINGS, http2_frames::ACK, 0, &[]))
            .await
            .unwrap();
        ignore_pings(&mut io).await;
    };
    let client = async |ip: IpAddr| {
        let listener = sandbox
            .pod("outsider")
            .run(|| std::net::TcpListener::bind(hbone(ip)).unwrap())
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut application = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        let acceptor = acceptor(&sandbox, OUTSIDER);
        let mut io = acceptor
            .accept(listener.accept().await.unwrap().0)
            .await
            .unwrap();
        let session = io.get_ref().1;
        assert_eq!(
            (session.server_name(), session.alpn_protocol()),
            (None, Some(&b"h2"[..]))
        );
        assert_eq!(
            session.handshake_kind(),
            Some(rustls::HandshakeKind::Full),
            "no session is resumed"
        );
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, PREFACE);
        let begin = [
            frame(SETTINGS, 0, 0, &[]),
            frame(SETTINGS, http2_frames::ACK, 0, &[]),
        ]
        .concat();
        io.write_all(&begin).await.unwrap();
        let (settings, window) = watch(&mut io).await;
        assert_eq!(
            settings,
            [(2, 0), (4, 1 << 20), (5, 64 * 1024), (6, 16 * 1024)]
        );
        assert_eq!(window, all);
        ignore_pings(&mut io).await;
        assert!(
            application.read(&mut [0]).is_err(),
            "no answer to CONNECT in time"
        );
    };
    let (servers, clients) = (sandbox.ips("server"), sandbox.ips("outsider"));
    tokio::join!(
        server(servers[0]),
        server(servers[1]),
        client(clients[0]),
        client(clients[1])
    );
    for ip in clients {
        let peer = hbone(ip).to_string();
        sandbox.access_line("node-1", &["UP-PROXY-006", &peer]);
        sandbox.access_line(
            "node-1",
            &["event=\"hbone_ping_timeout\"", &format!("peer={peer}")],
        );
    }
    for ip in sandbox.ips("client") {
        let peer = SocketAddr::new(ip, 0).to_string();
        sandbox.access_line(
            "node-2",
            &[
                "event=\"hbone_ping_timeout\"",
                &format!("peer={}", peer.trim_end_matches('0')),
            ],
        );
    }
}

/// The answer to a PING may wait behind data on a slow link, for longer than the deadline.
#[tokio::test]
async fn data_is_a_sign_of_life_while_a_ping_is_not_answered() {
    const SECONDS: usize = 25;
    let sandbox = Sandbox::up_with("slow-link", &mesh_with_fake_proxy());
    let ip = sandbox.ips("outsider")[0];
    let listener = sandbox
        .pod("outsider")
        .run(|| std::net::TcpListener::bind(hbone(ip)).unwrap())
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut application = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        (0..SECONDS)
            .map(|_| read_line(&mut application))
            .collect::<Result<Vec<_>, _>>()
    });
    let acceptor = acceptor(&sandbox, OUTSIDER);
    let tcp = listener.accept().await.unwrap().0;
    let mut io = acceptor.accept(tcp).await.unwrap();
    io.read_exact(&mut [0; 24]).await.unwrap();
    let begin = [
        frame(SETTINGS, 0, 0, &[]),
        frame(SETTINGS, http2_frames::ACK, 0, &[]),
    ];
    io.write_all(&begin.concat()).await.unwrap();
    while http2_frames::read(&mut io).await.unwrap().kind != HEADERS {}
    io.write_all(&accepted(1, false)).await.unwrap();
    while http2_frames::read(&mut io).await.unwrap().kind != PING {}
    for _ in 0..SECONDS {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        io.write_all(&data(1, b"still here\n")).await.unwrap();
    }
    assert_eq!(reading.await.unwrap().unwrap(), vec!["still here"; SECONDS]);
}

/// A frame that is a little longer than what the kernel passes on at once becomes two packets, each
/// of which costs the same work.
#[tokio::test]
async fn bulk_data_fills_whole_packets() {
    const LARGEST_PACKET: usize = 65_536;
    const TLS_RECORD: usize = 16_384;
    const BYTES: usize = 8 << 20;
    let sandbox = Sandbox::up_with("whole-packets", &mesh_with_fake_proxy());
    for ip in sandbox.ips("outsider") {
        let bind = || std::net::TcpListener::bind(hbone(ip)).ok();
        let listener = eventually(|| sandbox.pod("outsider").run(bind).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut application = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        let writing = std::thread::spawn(move || application.write_all(&vec![7; BYTES]));
        let acceptor = acceptor(&sandbox, OUTSIDER);
        let tcp = listener.accept().await.unwrap().0;
        let segment = socket2::SockRef::from(&tcp).tcp_mss().unwrap() as usize;
        let mut io = acceptor.accept(tcp).await.unwrap();
        io.read_exact(&mut [0; 24]).await.unwrap();
        // INITIAL_WINDOW_SIZE and MAX_FRAME_SIZE.
        let settings = [[0, 4, 0x40, 0, 0, 0], [0, 5, 0, 0x10, 0, 0]].concat();
        let window = frame(WINDOW_UPDATE, 0, 0, &0x4000_0000_u32.to_be_bytes());
        let greeting = [frame(SETTINGS, 0, 0, &settings), window];
        io.write_all(&greeting.concat()).await.unwrap();
        while http2_frames::read(&mut io).await.unwrap().kind != HEADERS {}
        io.write_all(&accepted(1, false)).await.unwrap();
        let mut lengths = Vec::new();
        while lengths.iter().sum::<usize>() < BYTES {
            let next = http2_frames::read(&mut io).await.unwrap();
            if next.kind == DATA {
                lengths.push(next.payload.len());
            }
        }
        writing.join().unwrap().unwrap();
        let longest = lengths.iter().max().unwrap() + 9;
        let wire = longest + longest.div_ceil(TLS_RECORD) * 22;
        let unused = wire.next_multiple_of(segment) - wire;
        assert!(
            wire <= LARGEST_PACKET && wire + segment > LARGEST_PACKET - 400,
            "{wire}"
        );
        assert!(unused <= 28, "{wire} bytes in segments of {segment}");
    }
}

#[tokio::test]
async fn a_refusal_has_no_headers_and_an_acceptance_has_baggage() {
    let sandbox = Sandbox::up("bare");
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        let at = |port: u16| SocketAddr::new(ip, port).to_string();
        let host = at(80).trim_end_matches(":80").to_owned();
        for (authority, status) in [(host, 400), (at(9), 503), ("10.96.0.10:80".to_owned(), 400)] {
            let response = ask(&requests, &authority).await;
            assert_eq!(response.status().as_u16(), status, "{authority}");
            assert!(
                response.headers().is_empty(),
                "{authority}: {:?}",
                response.headers()
            );
            assert!(response.body().is_end_stream(), "{authority} has a body");
        }
        let accepted = ask(&requests, &at(8080)).await;
        assert_eq!(accepted.status(), 200);
        assert!(
            accepted.headers()["baggage"]
                .to_str()
                .unwrap()
                .contains("k8s.namespace.name=default")
        );
    }
}

#[tokio::test]
async fn a_rejected_peer_gets_the_matching_tls_alert() {
    let sandbox = Sandbox::up("alerts");
    let good = || Some(of(&sandbox, CLIENT));
    let other = Some(of(&sandbox, "spiffe://other.example/ns/default/sa/client"));
    let http1 = TlsOptions {
        alpn: vec![b"http/1.1"],
        ..TlsOptions::default()
    };
    let tls12 = TlsOptions {
        versions: vec![&rustls::version::TLS12],
        ..TlsOptions::default()
    };
    let cases = [
        (None, TlsOptions::default(), "CertificateRequired"),
        (other, TlsOptions::default(), "CertificateUnknown"),
        (good(), http1, "NoApplicationProtocol"),
        (good(), tls12, "ProtocolVersion"),
    ];
    for (certificate, speech, alert) in cases {
        for ip in sandbox.ips("server") {
            let dialled = dial(
                &sandbox.pod("client"),
                ip,
                certificate
                    .as_ref()
                    .map(|(c, k)| (c.clone(), k.clone_key())),
                speech.clone(),
            )
            .await;
            let error = match dialled {
                Err(e) => e,
                Ok(mut io) => io.read(&mut [0]).await.expect_err("the peer was accepted"),
            };
            assert!(
                error.to_string().contains(alert),
                "{error} instead of {alert}"
            );
        }
    }
}

/// One allow policy with a rule for each port, so that one mesh covers all cases.
#[tokio::test]
async fn every_policy_matcher_applies_to_real_connections() {
    let allowed_from = |client: &str| {
        [
            (
                "{ namespaces: [{ Exact: default }] }".to_owned(),
                true,
                false,
            ),
            ("{ namespaces: [{ Prefix: def }] }".to_owned(), true, false),
            (
                "{ namespaces: [{ Suffix: nope }] }".to_owned(),
                false,
                false,
            ),
            (
                "{ notNamespaces: [{ Exact: default }] }".to_owned(),
                false,
                true,
            ),
            (
                "{ serviceAccounts: [{ namespace: default, serviceAccount: client }] }".to_owned(),
                true,
                false,
            ),
            (
                "{ notServiceAccounts: [{ namespace: default, serviceAccount: client }] }"
                    .to_owned(),
                false,
                true,
            ),
            (
                "{ principals: [{ Exact: cluster.local/ns/default/sa/client }] }".to_owned(),
                true,
                false,
            ),
            ("{ principals: [Presence] }".to_owned(), true, false),
            ("{ notPrincipals: [Presence] }".to_owned(), false, true),
            (format!("{{ sourceIps: [{client}] }}"), true, false),
            (format!("{{ notSourceIps: [{client}] }}"), false, true),
            (
                "{ destinationIps: [10.77.2.2/32, \"fd77:2::2/128\"] }".to_owned(),
                true,
                true,
            ),
            (
                "{ notDestinationIps: [10.77.2.2/32, \"fd77:2::2/128\"] }".to_owned(),
                false,
                false,
            ),
            ("{ notDestinationPorts: [1] }".to_owned(), true, true),
        ]
    };
    let cases = allowed_from("10.77.1.2/32, \"fd77:1::2/128\"");
    let port = |index: usize| 7000 + u16::try_from(index).unwrap();
    let rules: Vec<String> = cases
        .iter()
        .enumerate()
        .map(|(i, (m, ..))| format!("[[{{ destinationPorts: [{}] }}], [{m}]]", port(i)))
        .collect();
    let policies = format!(
        "  - {{ name: p, namespace: default, scope: Namespace, action: Allow, rules: [{}, [[{{ \
         destinationPorts: [6998, 6999] }}]]] }}
  - {{ name: dry, namespace: default, scope: Namespace, action: Deny, dryRun: true, rules: [[[{{ \
         destinationPorts: [6998] }}]]] }}
  - {{ name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{{ destinationPorts: \
         [6999] }}]]] }}",
        rules.join(", ")
    );
    let sandbox = Sandbox::up_with("matchers", &format!("{MESH}policies:\n{policies}\n"));
    (0..cases.len()).for_each(|i| serve_echo(&sandbox.pod("server"), port(i)));
    for ip in sandbox.ips("server") {
        let requests = tunnel(&sandbox, ip).await;
        let outsider = sandbox.pod("outsider");
        for (index, (matcher, with_identity, without)) in cases.iter().enumerate() {
            let to = SocketAddr::new(ip, port(index));
            let status = ask(&requests, &to.to_string()).await.status();
            assert_eq!(
                status,
                if *with_identity { 200 } else { 401 },
                "{matcher} with an identity"
            );
            let read = connect(&outsider, to).and_then(|mut s| read_line(&mut s));
            assert_eq!(read.is_ok(), *without, "{matcher} without one: {read:?}");
        }
        // These ports are closed; policies are checked before connecting.
        let status = async |port: u16| {
            ask(&requests, &SocketAddr::new(ip, port).to_string())
                .await
                .status()
                .as_u16()
        };
        assert_eq!(status(6998).await, 503, "a dry run denies nothing");
        assert_eq!(status(6999).await, 401, "deny takes precedence over allow");
        assert_eq!(status(6997).await, 401, "no rule allows this port");
    }
    sandbox.access_line("node-2", &["explicitly denied by: default/d"]);
    sandbox.access_line(
        "node-2",
        &[
            "src.workload=\"outsider\"",
            "direction=\"inbound\"",
            "connection complete",
        ],
    );
}

#[test]
fn a_waypoint_of_another_network_is_reached_through_the_gateway() {
    for (index, named) in ["/10.77.1.4", "\"/fd77:1::4\""].into_iter().enumerate() {
        let waypoint = "ports: { 80: 8080 }, waypoint: { destination: far/10.99.0.9 } }\n";
        let far = format!(
            "  - {{ name: far, namespace: default, network: far, protocol: HBONE, workloadIps: \
             [10.99.0.9], networkGateway: {{ destination: {named} }} }}\nservices:\n"
        );
        let mesh = MESH
            .replace("ports: { 80: 8080 } }\n", waypoint)
            .replace("services:\n  -", &format!("{far}  -"));
        assert!(mesh.contains("destination: far/") && mesh.contains("name: far,"));
        let sandbox = Sandbox::up_with("far-waypoint", &mesh);
        let neighbour = hbone(sandbox.ips("neighbour")[index]);
        let gateway = hbone(sandbox.ips("outsider")[index]);
        let played = FakeWaypoint::start(
            &sandbox,
            "outsider",
            gateway,
            OUTSIDER,
            StreamAction::ForwardTo(neighbour),
        );
        for vip in VIPS {
            // The gateway leads to another workload than the waypoint, which the client rejects.
            let read = connect(&sandbox.pod("client"), vip.parse().unwrap())
                .and_then(|mut s| read_line(&mut s));
            assert!(read.is_err(), "{read:?}");
            sandbox.access_line("node-1", &["UP-PROXY-005"]);
            let authorities = played.authorities();
            assert!(!authorities.is_empty(), "the gateway got no request");
            assert!(
                authorities
                    .iter()
                    .all(|a| a == "server.default.svc.cluster.local:80"),
                "{authorities:?}"
            );
        }
    }
}

#[test]
fn a_filtered_tunnel_port_is_reported_with_a_hint() {
    let sandbox = Sandbox::up_with("filtered", &mesh_with_fake_proxy());
    let rules = "table inet filtered { chain in { type filter hook input priority 0; tcp dport \
                 15008 drop\n }\n}\n";
    run(&sandbox.pod("outsider"), "nft", "-f -", rules);
    let ips = sandbox.ips("outsider");
    let _waiting: Vec<_> = ips
        .iter()
        .map(|ip| connect(&sandbox.pod("client"), SocketAddr::new(*ip, 8080)).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for ip in &ips {
            let (sandbox, address) = (&sandbox, SocketAddr::new(*ip, 15008).to_string());
            scope.spawn(move || {
                let found = || {
                    let log = sandbox.log("node-1", "proxy");
                    log.lines()
                        .any(|l| {
                            l.contains(&address)
                                && l.contains("UP-PROXY-004")
                                && l.contains("NetworkPolicy")
                        })
                        .then_some(())
                };
                eventually(found)
                    .or_else(|| eventually(found))
                    .expect("no hint within 16 s");
            });
        }
    });
}
