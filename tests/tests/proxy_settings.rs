//! The proxy's settings, by ztunnel's environment variables.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // `ss` is the oracle here

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use http::{Method, Request};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use underpass_tests::certificates::certificate;
use underpass_tests::http2_frames::{self, PREFACE, SETTINGS, WINDOW_UPDATE, frame};
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{
    MESH, Sandbox, connect, read_line, read_proxy_header, serve_echo, until,
};
use underpass_tests::tls_client::{TlsOptions, dial};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

/// Every variable that ztunnel reads, with values as in its DaemonSet. The mesh comes from a file
/// here.
const DAEMON_SET: [(&str, &str); 46] = [
    ("ALT_CA_HOSTNAME", ""),
    ("ALT_XDS_HOSTNAME", ""),
    ("AUTHZ_POLICY_INFO_LOGGING", "true"),
    ("CA_HEADER_x-tenant", "red"),
    ("CA_ROOT_CA", "SYSTEM"),
    ("CLUSTER_DOMAIN", "cluster.local"),
    ("CLUSTER_ID", "Kubernetes"),
    ("COMPLIANCE_POLICY", ""),
    ("CONNECTION_TERMINATION_DEADLINE", "7s"),
    ("ENABLE_ORIG_SRC", "false"),
    ("ENABLE_PROXY", "true"),
    ("ENABLE_RESPONSE_BAGGAGE", "true"),
    ("FAKE_CA", "false"),
    ("HTTP2_CONNECTION_WINDOW_SIZE", "16777216"),
    ("HTTP2_FRAME_SIZE", "1048576"),
    ("HTTP2_STREAM_WINDOW_SIZE", "4194304"),
    ("INPOD_PORT_REUSE", "true"),
    ("INSTANCE_IP", "10.0.0.7"),
    ("IPV6_ENABLED", "true"),
    ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
    ("ISTIO_META_DNS_CAPTURE", "true"),
    ("ISTIO_META_DNS_PROXY_ADDR", "127.0.0.1:15053"),
    ("ISTIO_META_ENABLE_HBONE", "true"),
    ("ISTIO_META_ISTIO_VERSION", "1.28.0"),
    ("KEEPALIVE_ENABLED", "true"),
    ("KEEPALIVE_INTERVAL", "20s"),
    ("KEEPALIVE_RETRIES", "4"),
    ("KEEPALIVE_TIME", "90s"),
    ("LOCALHOST_APP_TUNNEL", "true"),
    ("LOG_FORMAT", "plain"),
    ("NETWORK", ""),
    ("PACKET_MARK", "1337"),
    ("POD_NAME", "ztunnel-abcde"),
    ("POD_NAMESPACE", "istio-system"),
    ("POOL_MAX_STREAMS_PER_CONNECTION", "100"),
    ("POOL_UNUSED_RELEASE_TIMEOUT", "300s"),
    ("PREFERED_SERVICE_NAMESPACE", ""),
    ("RUST_LOG", "info"),
    ("SECRET_TTL", "24h"),
    ("SERVICE_ACCOUNT", "ztunnel"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
    ("TLS12_ENABLED", "false"),
    ("TRUST_DOMAIN", "cluster.local"),
    ("UNSTABLE_ENABLE_SOCKS5", "true"),
    ("USER_TIMEOUT_ENABLED", "true"),
    ("ZTUNNEL_RESOURCE_CPU_REQUEST", "1"),
];

#[test]
fn the_environment_of_ztunnels_daemonset_is_accepted() {
    let mut node = TestNode::new("daemonset", MESH);
    node.start_agent();
    node.start_ready_proxy_with(&DAEMON_SET);
    let dump: Value =
        serde_json::from_str(&node.get("127.0.0.1:15000", "/config_dump").unwrap().1).unwrap();
    let config = &dump["config"];
    for (name, value) in [
        ("HTTP2_FRAME_SIZE", "1048576"),
        ("KEEPALIVE_TIME", "90s"),
        ("CLUSTER_DOMAIN", "cluster.local"),
    ] {
        assert_eq!(config[name]["value"], value, "{config}");
        assert_eq!(config[name]["from"], "environment", "{config}");
    }
    assert_eq!(
        config["CA_ROOT_CA"]["value"], "(set)",
        "possible secrets are not shown"
    );
    assert_eq!(
        config["XDS_ON_DEMAND"],
        serde_json::json!({ "value": "false", "from": "default" })
    );
    let log = node.log("proxy");
    let ignored: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("event=\"setting_ignored\""))
        .collect();
    for (name, value) in [
        ("ENABLE_ORIG_SRC", "false"),
        ("ISTIO_META_DNS_PROXY_ADDR", "127.0.0.1:15053"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
    ] {
        let fields = [format!("name=\"{name}\""), format!("value=\"{value}\"")];
        assert!(
            ignored.iter().any(|l| fields.iter().all(|f| l.contains(f))),
            "{name}: {log}"
        );
    }
    assert_eq!(
        ignored.len(),
        3,
        "values that match the behaviour are not logged: {ignored:?}"
    );
}

#[test]
fn secrets_in_settings_are_not_shown() {
    let mut node = TestNode::new("secrets", MESH);
    node.start_agent();
    node.start_ready_proxy_with(&[
        (
            "PROXY_CONFIG",
            "{ proxyMetadata: { TENANT_TOKEN: secret-1 } }",
        ),
        ("AUTH_TOKEN", "secret-2"),
        ("XDS_HEADER_x-tenant", "secret-3"),
        ("CA_HEADER_x-tenant", "secret-4"),
    ]);
    let dump = node.get("127.0.0.1:15000", "/config_dump").unwrap().1;
    let config: Value = serde_json::from_str(&dump).unwrap();
    for name in ["PROXY_CONFIG", "AUTH_TOKEN"] {
        assert_eq!(config["config"][name]["value"], "(set)", "{name}");
    }
    for path in ["/config_dump", "/status", "/metrics", "/"] {
        let shown = node.get("127.0.0.1:15000", path).unwrap().1;
        assert!(!shown.contains("secret-"), "{path}: {shown}");
    }
    assert!(!node.log("proxy").contains("secret-"));
}

#[test]
fn an_invalid_setting_is_rejected() {
    let mut node = TestNode::new("wrong-setting", MESH);
    node.start_agent();
    for (name, value) in [
        ("HTTP2_FRAME_SIZE", "100"),
        ("KEEPALIVE_TIME", "never"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("LOCALHOST_APP_TUNNEL", "perhaps"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "-1"),
        ("PROXY_MODE", "dedicated"),
        ("UNDERPASS_METRICS_EXCLUDE_LABELS", "reporter"),
    ] {
        let before = node.log("proxy").len();
        node.start_proxy_with(&[(name, value)]);
        until(&format!("{name}={value} is rejected"), || {
            let log = node.log("proxy").split_off(before);
            (log.contains("UP-CONTROL-001") && log.contains("Next step") && log.contains(value))
                .then_some(())
        });
    }
}

/// The established connections of a pod to a port, as `ss` prints them.
fn established(sandbox: &Sandbox, pod: &str, port: u16) -> Vec<String> {
    let mut ss = Command::new("ss");
    ss.args([
        "-Htno",
        "state",
        "established",
        &format!("( dport = :{port} )"),
    ]);
    netns::process::in_netns(&mut ss, &sandbox.pod(pod)).unwrap();
    let output = ss.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn as_many_connections_wait_to_be_accepted_as_the_pod_allows() {
    let sandbox = Sandbox::up("backlog");
    let server = sandbox.pod("server");
    let limit = server.run(|| std::fs::read_to_string("/proc/sys/net/core/somaxconn"));
    let limit = limit.unwrap().unwrap();
    for port in [15001, 15006, 15008] {
        let mut ss = Command::new("ss");
        ss.args(["-Hltn", &format!("( sport = :{port} )")]);
        netns::process::in_netns(&mut ss, &server).unwrap();
        let listening = String::from_utf8(ss.output().unwrap().stdout).unwrap();
        let queue = listening.split_whitespace().nth(2);
        assert_eq!(queue, Some(limit.trim()), "{port}: {listening}");
    }
}

#[test]
fn tunnels_are_shared_and_kept_alive_as_configured() {
    let environment = [
        ("POOL_MAX_STREAMS_PER_CONNECTION", "1"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "1s"),
        ("KEEPALIVE_TIME", "77s"),
        ("KEEPALIVE_INTERVAL", "11s"),
        ("USER_TIMEOUT_ENABLED", "true"),
    ];
    let sandbox = Sandbox::up_in("shared-tunnels", MESH, &environment);
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let open: Vec<_> = (0..5)
            .map(|_| {
                let mut stream =
                    connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
                writeln!(stream, "hello").unwrap();
                assert!(!read_line(&mut stream).unwrap().is_empty());
                stream
            })
            .collect();
        let tunnels = established(&sandbox, "client", 15008);
        assert_eq!(
            tunnels.len(),
            open.len(),
            "one tunnel per stream: {tunnels:?}"
        );
        assert!(
            tunnels
                .iter()
                .all(|t| t.contains("timer:(keepalive,1min1") || t.contains("timer:(on,")),
            "{tunnels:?}"
        );
        drop(open);
        until("unused tunnels are closed", || {
            established(&sandbox, "client", 15008)
                .is_empty()
                .then_some(())
        });
    }
}

#[test]
fn an_application_tunnel_can_use_the_pods_own_address() {
    let plain = "serviceAccount: server,";
    let mesh = MESH.replace(
        plain,
        &format!("{plain} applicationTunnel: {{ protocol: PROXY, port: 15088 }},"),
    );
    let sandbox = Sandbox::up_in("own-address", &mesh, &[("LOCALHOST_APP_TUNNEL", "false")]);
    for ip in sandbox.ips("server") {
        let listener = sandbox
            .pod("server")
            .run(|| TcpListener::bind((ip, 15088)).unwrap())
            .unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let header = read_proxy_header(&mut stream);
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let line = lines.next().unwrap().unwrap();
                writeln!(stream, "{line} after {} bytes of PROXY", header.len()).unwrap();
            }
        });
        let mut stream = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        writeln!(stream, "hello").unwrap();
        let line = read_line(&mut stream).unwrap();
        assert!(
            line.starts_with("hello after ") && line.ends_with(" bytes of PROXY"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn response_baggage_can_be_disabled_and_policy_logging_enabled() {
    let environment = [
        ("ENABLE_RESPONSE_BAGGAGE", "false"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true"),
    ];
    let sandbox = Sandbox::up_in("no-baggage", MESH, &environment);
    serve_echo(&sandbox.pod("server"), 8080);
    let client = certificate(&sandbox.folder().join("box/ca"), CLIENT);
    let guest = sandbox.pod("outsider"); // its address is not the client's
    for ip in sandbox.ips("server") {
        let certificate = Some((client.0.clone(), client.1.clone_key()));
        let stream = dial(&guest, ip, certificate, TlsOptions::default())
            .await
            .unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        let driven = tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(SocketAddr::new(ip, 8080).to_string())
            .header(
                "baggage",
                "k8s.namespace.name=claimed,k8s.deployment.name=claimed",
            )
            .body(())
            .unwrap();
        let (response, _send) = requests
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers().get("baggage")
            ),
            (200, None)
        );
        driven.abort();
    }
    let line = sandbox.access_line("node-2", &["connection complete", "direction=\"inbound\""]);
    assert!(!line.contains("claimed"), "{line}");
    until("allowed connections are logged", || {
        let log = sandbox.log("node-2", "proxy");
        let fields = ["\tpolicy\t", "dst.addr=", "verdict=\"allow\""];
        let allowed = log.lines().filter(|l| fields.iter().all(|f| l.contains(f)));
        (allowed.count() >= 2).then_some(())
    });
}

/// Settings 3 is MAX_CONCURRENT_STREAMS, 4 INITIAL_WINDOW_SIZE, 5 MAX_FRAME_SIZE, 6
/// MAX_HEADER_LIST_SIZE. Setting 1, HEADER_TABLE_SIZE, is not configurable: the second engine keeps
/// no table.
#[tokio::test]
async fn windows_and_frames_have_the_configured_sizes() {
    let environment = [
        ("HTTP2_STREAM_WINDOW_SIZE", "4194304"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "16777216"),
        ("HTTP2_FRAME_SIZE", "1048576"),
    ];
    let sandbox = Sandbox::up_in("windows", MESH, &environment);
    let (chain, key) = certificate(&sandbox.folder().join("box/ca"), CLIENT);
    for ip in sandbox.ips("server") {
        let certificate = Some((chain.clone(), key.clone_key()));
        let mut io = dial(
            &sandbox.pod("client"),
            ip,
            certificate,
            TlsOptions::default(),
        )
        .await
        .unwrap();
        io.write_all(&[&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat())
            .await
            .unwrap();
        let mut settings = Vec::new();
        let window = loop {
            let next = http2_frames::read(&mut io).await.unwrap();
            match next.kind {
                SETTINGS if next.flags != http2_frames::ACK => {
                    settings = http2_frames::settings(&next)
                }
                WINDOW_UPDATE => break u32::from_be_bytes(next.payload[..4].try_into().unwrap()),
                _ => {}
            }
        };
        settings.retain(|(setting, _)| *setting != 1);
        settings.sort_unstable();
        assert_eq!(
            settings,
            [(3, 1024), (4, 4 << 20), (5, 1 << 20), (6, 64 << 10)]
        );
        assert_eq!(window, (16 << 20) - 65_535);
    }
}

/// The metrics of docs/ztunnel.md, as scraped.
#[test]
fn ztunnels_metrics_keep_their_names() {
    let sandbox = Sandbox::up("metric-names");
    serve_echo(&sandbox.pod("server"), 8080);
    let mut open = connect(
        &sandbox.pod("client"),
        SocketAddr::new(sandbox.ips("server")[0], 8080),
    )
    .unwrap();
    assert!(!read_line(&mut open).unwrap().is_empty());
    let nowhere = SocketAddr::new(sandbox.ips("server")[0], 9);
    assert!(
        connect(&sandbox.pod("client"), nowhere)
            .and_then(|mut s| s.read(&mut [0]))
            .is_err()
    );
    sandbox.access_line("node-1", &["connection complete", ":9 "]);
    let metrics = sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
    let value = |start: &str| -> f64 {
        let line = metrics
            .lines()
            .find(|l| l.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for (start, least) in [
        ("istio_tcp_connections_opened_total{", 1.0),
        ("istio_tcp_connections_closed_total{", 1.0),
        ("istio_tcp_connections_failed_total{", 1.0),
        ("istio_tcp_sockets_open{reporter=\"source\"}", 1.0),
        ("istio_tcp_sockets_open{reporter=\"destination\"}", 0.0),
        ("istio_tcp_received_bytes_total{", 0.0),
        ("istio_tcp_sent_bytes_total{", 0.0),
        ("istio_crl_policy_rejections_total{", 0.0),
        ("istio_crl_untracked_connections_total{", 0.0),
        ("istio_build_info{component=\"ztunnel\"", 1.0),
        ("workload_manager_active_proxy_count", 2.0),
        ("workload_manager_pending_proxy_count", 0.0),
        ("workload_manager_proxies_started_total", 2.0),
        ("workload_manager_proxies_stopped_total", 0.0),
        ("tokio_num_workers", 3.0),
        ("tokio_num_alive_tasks", 10.0),
        ("tokio_global_queue_depth", 0.0),
        (
            "tokio_worker_total_busy_duration_seconds_total{worker=\"0\"}",
            0.0,
        ),
        ("tokio_worker_park_count_total{worker=\"1\"}", 1.0),
        ("tokio_worker_park_unpark_count_total{worker=\"2\"}", 1.0),
        ("process_open_fds", 10.0),
        ("process_max_fds", 1024.0),
    ] {
        assert!(value(start) >= least, "{start}: {metrics}");
    }
    assert!(metrics.trim_end().ends_with("# EOF"), "OpenMetrics");
}
