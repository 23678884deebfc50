//! A plain Envoy as ingress gateway and waypoint in a sandbox, without a control plane: its
//! listeners and clusters are those that istiod creates for these (`connect_terminate`,
//! `main_internal`, `connect_originate`), as far as they concern connections.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::binaries::{control_plane, control_plane_files};
use crate::certificates::certificate_pem;
use crate::sandbox::{Sandbox, until};

/// The port on which it accepts plain HTTP, as an ingress gateway.
pub const INGRESS: u16 = 8000;
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// A running Envoy.
#[derive(Debug)]
pub struct Gateway(Child);

/// What this machine lacks for it.
pub fn missing_gateway() -> Option<String> {
    control_plane_files(["bin/envoy"]).err()
}

impl Gateway {
    /// Starts it in a pod that is not captured, and waits until it serves. It sends all requests to
    /// this address by HBONE.
    pub fn start(sandbox: &Sandbox, pod: &str, identity: &str, to: SocketAddr) -> Self {
        let file = sandbox.folder().join("envoy.json");
        let bootstrap = bootstrap(&tls(sandbox, identity), to);
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let log = std::fs::File::create(sandbox.folder().join("envoy.log")).unwrap();
        let mut envoy = Command::new(control_plane().join("bin/envoy"));
        envoy.arg("-c").arg(file);
        envoy.args(["--concurrency", "1", "--log-level", "error"]);
        envoy.args(["--disable-hot-restart"]);
        envoy.stdin(Stdio::null()).stdout(log.try_clone().unwrap());
        envoy.stderr(log);
        let netns = sandbox.pod(pod);
        netns::process::in_netns(&mut envoy, &netns).unwrap();
        let mut gateway = Self(netns::process::die_with_parent(&mut envoy).spawn().unwrap());
        until("Envoy serves", || {
            assert_eq!(gateway.0.try_wait().unwrap(), None, "Envoy has exited");
            let connect = || std::net::TcpStream::connect(("127.0.0.1", INGRESS)).ok();
            netns.run(connect).unwrap()
        });
        gateway
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tls(sandbox: &Sandbox, identity: &str) -> Value {
    let ca = sandbox.folder().join("box/ca");
    let (chain, key) = certificate_pem(&ca, identity);
    json!({
        "tls_certificates": [{
            "certificate_chain": { "inline_string": chain },
            "private_key": { "inline_string": key },
        }],
        "validation_context": {
            "trusted_ca": { "filename": ca.join("root-cert.pem") },
            "match_typed_subject_alt_names": [
                { "san_type": "URI", "matcher": { "prefix": "spiffe://cluster.local/" } },
            ],
        },
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
        },
    })
}

fn bootstrap(tls: &Value, to: SocketAddr) -> Value {
    let (name, kind) = (
        "internal_listener",
        "bootstrap.internal_listener.v3.InternalListener",
    );
    json!({
        "bootstrap_extensions": [typed(name, kind)],
        "static_resources": {
            "listeners": [
                { "name": "ingress", "address": any(INGRESS), "filter_chains": [http("ingress")] },
                connect_terminate(tls),
                { "name": "main", "internal_listener": {}, "filter_chains": [http("main")] },
                connect_originate(),
            ],
            "clusters": [web(to), main(), tunnels(tls)],
        },
    })
}

/// An extension without settings.
fn typed(name: &str, kind: &str) -> Value {
    json!({ "name": name, "typed_config": { "@type": format!("{EXTENSIONS}.{kind}") } })
}

/// An extension with settings.
fn with(name: &str, kind: &str, settings: Value) -> Value {
    let mut extension = typed(name, kind);
    let config = extension["typed_config"].as_object_mut().unwrap();
    config.extend(settings.as_object().unwrap().clone());
    extension
}

fn any(port: u16) -> Value {
    json!({ "socket_address": { "address": "0.0.0.0", "port_value": port } })
}

/// A filter chain that serves HTTP with this route.
fn manager(name: &str, route: Value, settings: Value) -> Value {
    const KIND: &str = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    let host = json!({ "name": name, "domains": ["*"], "routes": [route] });
    let router = typed("envoy.filters.http.router", "filters.http.router.v3.Router");
    let mut manager = with(name, KIND, settings);
    manager["typed_config"]["stat_prefix"] = json!(name);
    manager["typed_config"]["route_config"] = json!({ "virtual_hosts": [host] });
    manager["typed_config"]["http_filters"] = json!([router]);
    json!({ "filters": [manager] })
}

/// Requests to the service, with Istio's default policy of retries.
fn http(name: &str) -> Value {
    let on = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
    let retries = json!({ "num_retries": 2, "retry_on": on });
    let action = json!({ "cluster": "web", "timeout": "0s", "retry_policy": retries });
    manager(
        name,
        json!({ "match": { "prefix": "/" }, "route": action }),
        json!({}),
    )
}

fn connect_terminate(tls: &Value) -> Value {
    let upgrade = json!({ "upgrade_type": "CONNECT", "connect_config": {} });
    let action = json!({ "cluster": "main", "timeout": "0s", "upgrade_configs": [upgrade] });
    let settings = json!({
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "http2_protocol_options": {
            "allow_connect": true,
            "max_concurrent_streams": 100,
            "connection_keepalive": { "interval": "10s", "timeout": "20s" },
        },
    });
    let route = json!({ "match": { "connect_matcher": {} }, "route": action });
    let mut chain = manager("connect_terminate", route, settings);
    let context = json!({ "common_tls_context": tls, "require_client_certificate": true });
    chain["transport_socket"] = with(
        "tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        context,
    );
    json!({ "name": "connect_terminate", "address": any(15008), "filter_chains": [chain] })
}

fn connect_originate() -> Value {
    let settings = json!({
        "stat_prefix": "connect_originate",
        "cluster": "tunnels",
        "tunneling_config": { "hostname": "%DOWNSTREAM_LOCAL_ADDRESS%" },
    });
    let filter = with("tcp", "filters.network.tcp_proxy.v3.TcpProxy", settings);
    let name = "envoy.filters.listener.original_dst";
    json!({
        "name": "connect_originate",
        "internal_listener": {},
        "listener_filters": [typed(name, "filters.listener.original_dst.v3.OriginalDst")],
        "filter_chains": [{ "filters": [filter] }],
    })
}

/// A cluster whose only endpoint is an internal listener.
fn internal(name: &str, listener: &str, metadata: Value, passed_on: Value) -> Value {
    let settings = json!({
        "passthrough_metadata": passed_on,
        "transport_socket": typed("raw", "transport_sockets.raw_buffer.v3.RawBuffer"),
    });
    let address = json!({ "envoy_internal_address": { "server_listener_name": listener } });
    let endpoint = json!({ "endpoint": { "address": address }, "metadata": metadata });
    const KIND: &str = "transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    json!({
        "name": name,
        "circuit_breakers": unlimited(),
        "load_assignment": {
            "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }],
        },
        "transport_socket": with("internal_upstream", KIND, settings),
    })
}

fn web(to: SocketAddr) -> Value {
    let name = "envoy.filters.listener.original_dst";
    let metadata = json!({ "filter_metadata": { name: { "local": to.to_string() } } });
    let passed_on = json!([{ "kind": { "host": {} }, "name": name }]);
    internal("web", "connect_originate", metadata, passed_on)
}

fn main() -> Value {
    internal("main", "main", json!({}), json!([]))
}

fn tunnels(tls: &Value) -> Value {
    const OPTIONS: &str = "upstreams.http.v3.HttpProtocolOptions";
    let options = json!({
        "@type": format!("{EXTENSIONS}.{OPTIONS}"),
        "common_http_protocol_options": { "idle_timeout": "3600s" },
        "explicit_http_config": { "http2_protocol_options": { "allow_connect": true } },
    });
    let context = json!({ "common_tls_context": tls });
    json!({
        "name": "tunnels",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": unlimited(),
        "original_dst_lb_config": { "upstream_port_override": 15008 },
        "typed_extension_protocol_options": { format!("envoy.extensions.{OPTIONS}"): options },
        "transport_socket": with("tls", "transport_sockets.tls.v3.UpstreamTlsContext", context),
    })
}

fn unlimited() -> Value {
    let limit = u32::MAX;
    json!({ "thresholds": [{
        "max_connections": limit,
        "max_pending_requests": limit,
        "max_requests": limit,
        "max_retries": limit,
    }] })
}
