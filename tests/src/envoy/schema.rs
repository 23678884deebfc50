//! Where Envoy's messages configure extensions. The numbers are those of its proto files.

/// What a field of a message contains.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// Messages with parts.
    Within(&'static [(u32, Part)]),
    /// Extensions, each with its type and configuration (an `Any`) in this field of its own. The
    /// entries of a map are of this form as well.
    Extensions { config: u32 },
}

use Part::{Extensions, Within};

/// The parts of a message, by its type.
pub(super) fn parts_of(kind: &str) -> &'static [(u32, Part)] {
    match kind {
        "envoy.config.listener.v3.Listener" => LISTENER,
        "envoy.config.cluster.v3.Cluster" => CLUSTER,
        "envoy.config.route.v3.RouteConfiguration" => ROUTES,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            CONNECTION_MANAGER
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => TCP_PROXY,
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" => HTTP_OPTIONS,
        _ => &[],
    }
}

/// `filter_chains`, `listener_filters`, `access_log`, `default_filter_chain`.
const LISTENER: &[(u32, Part)] = &[
    (3, Within(FILTER_CHAIN)),
    (9, Extensions { config: 3 }),
    (22, Extensions { config: 4 }),
    (25, Within(FILTER_CHAIN)),
];

/// `filters`.
const FILTER_CHAIN: &[(u32, Part)] = &[(3, Extensions { config: 4 })];

/// `route_config`, `http_filters`, `access_log`, `upgrade_configs`.
const CONNECTION_MANAGER: &[(u32, Part)] = &[
    (4, Within(ROUTES)),
    (5, Extensions { config: 4 }),
    (13, Extensions { config: 4 }),
    (23, Within(&[(2, Extensions { config: 4 })])),
];

/// `access_log`.
const TCP_PROXY: &[(u32, Part)] = &[(5, Extensions { config: 4 })];

/// `virtual_hosts` and `typed_per_filter_config`, at every level.
const ROUTES: &[(u32, Part)] = &[(2, Within(VIRTUAL_HOST)), (16, Extensions { config: 2 })];
const VIRTUAL_HOST: &[(u32, Part)] = &[(3, Within(ROUTE)), (15, Extensions { config: 2 })];
const ROUTE: &[(u32, Part)] = &[
    (2, Within(&[(3, Within(&[(1, Within(WEIGHTED_CLUSTER))]))])),
    (13, Extensions { config: 2 }),
];
const WEIGHTED_CLUSTER: &[(u32, Part)] = &[(10, Extensions { config: 2 })];

/// `typed_extension_protocol_options`, `filters`. Transport sockets are not among the parts, here
/// or in filter chains: without one, a connection would be plain text. Envoy rejects those
/// that it lacks.
const CLUSTER: &[(u32, Part)] = &[
    (36, Extensions { config: 2 }),
    (40, Extensions { config: 2 }),
];

/// `http_filters`.
const HTTP_OPTIONS: &[(u32, Part)] = &[(6, Extensions { config: 4 })];
