//! The filter between Istio's agent and a plain Envoy removes what this Envoy lacks, reports it by
//! name, and changes nothing else.

#![allow(clippy::unwrap_used)]

use underpass_tests::envoy::Extensions;

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";
/// An extension that Envoy lacks.
const UNKNOWN: &str = "istio.test.Unknown";
/// What Envoy has.
const KNOWN: [&str; 4] = [MANAGER, TCP_PROXY, HTTP_OPTIONS, ROUTER];

/// A field with a string, bytes or a message.
fn field(number: u32, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut encoded = varint(u64::from(number) << 3 | 2);
    encoded.extend(varint(content.len() as u64));
    encoded.extend(content);
    encoded
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value > 127 {
        encoded.push(u8::try_from(value & 127).unwrap() | 128);
        value >>= 7;
    }
    encoded.push(u8::try_from(value).unwrap());
    encoded
}

/// Fields that no part of the filter knows: a varint whose encoding is longer than necessary, a
/// string, 64 and 32 bits, and an empty message.
fn others() -> Vec<u8> {
    let mut fields = vec![0xe0, 0x3f, 0x81, 0x80, 0x00]; // field 1020
    fields.extend(field(1021, "kept"));
    fields.extend(varint(1022 << 3 | 1));
    fields.extend([7; 8]);
    fields.extend(varint(1023 << 3 | 5));
    fields.extend([9; 4]);
    fields.extend(field(1024, ""));
    fields
}

fn any(kind: &str, message: impl AsRef<[u8]>) -> Vec<u8> {
    let url = format!("type.googleapis.com/{kind}");
    [field(1, url), field(2, message)].concat()
}

/// An extension with its name, and its configuration in this field; as an entry of a map as well.
fn extension(name: &str, config: u32, kind: &str, message: impl AsRef<[u8]>) -> Vec<u8> {
    [field(1, name), field(config, any(kind, message))].concat()
}

fn response(kind: &str, resources: &[Vec<u8>]) -> Vec<u8> {
    let mut fields = field(1, "version");
    for resource in resources {
        let resource = [field(3, "name"), field(2, any(kind, resource)), others()];
        fields.extend(field(2, resource.concat()));
    }
    fields.extend(field(5, "nonce"));
    fields.extend(others());
    fields
}

/// The first request of an Envoy with these extensions.
fn request(kinds: &[&str]) -> Vec<u8> {
    let mut node = field(1, "node");
    for kind in kinds {
        node.extend(field(
            9,
            [field(1, "name"), field(2, "category"), field(6, kind)].concat(),
        ));
    }
    [field(1, node), field(2, "type")].concat()
}

fn envoy() -> Extensions {
    let mut envoy = Extensions::default();
    assert_eq!(envoy.read_request(&request(&KNOWN)), [""; 0]);
    envoy
}

/// The response with `removed` in this place becomes the one without it, and only that is logged.
#[track_caller]
fn assert_removed(place: &str, kind: &str, resource: impl Fn(&[u8]) -> Vec<u8>, removed: &[u8]) {
    let with = response(kind, &[others(), resource(removed), resource(b"")]);
    let without = response(kind, &[others(), resource(b""), resource(b"")]);
    let filtered = envoy().filter_response(&with);
    assert_eq!(filtered.response, without, "{place}");
    let line = format!("removed custom ({UNKNOWN}) from {place}");
    assert_eq!(filtered.log, [line]);
}

/// A listener with a filter chain that has a network filter of this type.
fn listener_with(kind: &str, message: &[u8]) -> Vec<u8> {
    let filter = field(3, extension("filter", 4, kind, message));
    let chain = [others(), filter, field(7, "chain")].concat();
    [field(1, "listener"), field(3, chain), others()].concat()
}

#[test]
fn unknown_extensions_of_listeners_are_removed_by_name() {
    let within =
        |parts: &'static [u32]| move |removed: &[u8]| nest(parts, &[removed, &others()].concat());
    let custom = |number, config| field(number, extension("custom", config, UNKNOWN, "config"));
    assert_removed("Listener", LISTENER, within(&[]), &custom(9, 3)); // listener_filters
    assert_removed("Listener", LISTENER, within(&[]), &custom(22, 4)); // access_log
    assert_removed("Listener", LISTENER, within(&[3]), &custom(3, 4)); // filter_chains
    assert_removed("Listener", LISTENER, within(&[25]), &custom(3, 4)); // default_filter_chain
}

/// A message within fields of these numbers.
fn nest(numbers: &[u32], message: &[u8]) -> Vec<u8> {
    let into = |inner: Vec<u8>, number: &u32| field(*number, inner);
    numbers.iter().rev().fold(message.to_vec(), into)
}

#[test]
fn unknown_extensions_of_filters_are_removed_by_name() {
    let custom = |number| field(number, extension("custom", 4, UNKNOWN, "config"));
    let in_filter = |kind: &'static str, parts: &'static [u32]| {
        move |removed: &[u8]| {
            let router = field(5, extension("router", 4, ROUTER, "config"));
            let part = [others(), removed.to_vec(), router].concat();
            listener_with(kind, &nest(parts, &part))
        }
    };
    let manager = "Listener > HttpConnectionManager";
    assert_removed(manager, LISTENER, in_filter(MANAGER, &[]), &custom(5)); // http_filters
    assert_removed(manager, LISTENER, in_filter(MANAGER, &[]), &custom(13)); // access_log
    assert_removed(manager, LISTENER, in_filter(MANAGER, &[23]), &custom(2)); // upgrade_configs
    let tcp_proxy = "Listener > TcpProxy";
    assert_removed(
        tcp_proxy,
        LISTENER,
        |removed| listener_with(TCP_PROXY, &[others(), removed.to_vec()].concat()),
        &custom(5), // access_log
    );
}

#[test]
fn unknown_extensions_of_routes_are_removed_at_every_level() {
    let levels: [(&[u32], u32); 4] = [
        (&[], 16),              // the configuration
        (&[2], 15),             // virtual_hosts
        (&[2, 3], 13),          // routes
        (&[2, 3, 2, 3, 1], 10), // route, weighted_clusters, clusters
    ];
    let filter_config = [field(1, any(UNKNOWN, "config")), vec![0x10, 1]].concat();
    for (level, number) in levels {
        for custom in [
            extension("custom", 2, UNKNOWN, "config"),
            extension("custom", 2, FILTER_CONFIG, &filter_config),
        ] {
            let custom = field(number, custom);
            let routes = |removed: &[u8]| nest(level, &[removed, &others()].concat());
            assert_removed("RouteConfiguration", ROUTES, routes, &custom);
            let within = |removed: &[u8]| listener_with(MANAGER, &field(4, routes(removed)));
            assert_removed(
                "Listener > HttpConnectionManager",
                LISTENER,
                within,
                &custom,
            );
        }
    }
}

#[test]
fn unknown_extensions_of_clusters_are_removed_by_name() {
    let custom = |number, config| field(number, extension("custom", config, UNKNOWN, "config"));
    let cluster = |removed: &[u8]| [field(1, "cluster"), removed.to_vec(), others()].concat();
    assert_removed("Cluster", CLUSTER, cluster, &custom(36, 2)); // typed_extension_protocol_options
    assert_removed("Cluster", CLUSTER, cluster, &custom(40, 2)); // filters
    let options = |removed: &[u8]| {
        let options = [others(), removed.to_vec()].concat();
        cluster(&field(36, extension("http", 2, HTTP_OPTIONS, options)))
    };
    let place = "Cluster > HttpProtocolOptions";
    assert_removed(place, CLUSTER, options, &custom(6, 4)); // http_filters
}

#[test]
fn an_unknown_extension_in_a_structure_is_removed() {
    for structure in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
        let wrapped = field(1, format!("type.googleapis.com/{UNKNOWN}"));
        let custom = field(3, extension("custom", 4, structure, &wrapped));
        let chain = |removed: &[u8]| field(3, removed);
        assert_removed("Listener", LISTENER, chain, &custom);
        // What Envoy has is kept in that form as well.
        let known = field(1, format!("type.googleapis.com/{MANAGER}"));
        let kept = field(3, extension("kept", 4, structure, &known));
        assert_unchanged(LISTENER, &field(3, kept));
    }
}

#[track_caller]
fn assert_unchanged(kind: &str, resource: &[u8]) {
    let response = response(kind, &[resource.to_vec()]);
    let filtered = envoy().filter_response(&response);
    assert_eq!(filtered.response, response);
    assert_eq!(filtered.log, [""; 0]);
}

/// Without its transport socket, a cluster or a filter chain would send and accept plain text.
/// Envoy is to reject it instead.
#[test]
fn transport_sockets_are_never_removed() {
    let socket = extension("custom", 3, UNKNOWN, "config");
    assert_unchanged(CLUSTER, &[field(24, &socket), others()].concat());
    let by_metadata = field(43, field(3, &socket)); // transport_socket_matches
    assert_unchanged(CLUSTER, &by_metadata);
    assert_unchanged(LISTENER, &field(3, field(6, &socket)));
}

#[test]
fn what_envoy_has_keeps_its_bytes() {
    let router = field(5, extension("router", 4, ROUTER, others()));
    let manager = [others(), router.clone(), router].concat();
    assert_unchanged(LISTENER, &listener_with(MANAGER, &manager));
    let chain = field(3, extension("filter", 4, MANAGER, &manager));
    let length = varint(chain.len() as u64);
    let (last, first) = length.split_last().unwrap();
    let longer_length = [&[0x1a], first, &[last | 128, 0], &chain].concat();
    assert_unchanged(LISTENER, &longer_length);
    assert_unchanged(LISTENER, b"\xff not a message");
    let strange = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    let extension = extension("custom", 4, UNKNOWN, "config");
    assert_unchanged(strange, &field(3, &extension));
    let response = b"\xff not a message".to_vec();
    let filtered = envoy().filter_response(&response);
    assert_eq!(filtered.response, response);
    assert_eq!(filtered.log, ["cannot decode a response of the agent"]);
}

#[test]
fn nothing_is_removed_before_envoy_has_listed_its_extensions() {
    let custom = field(9, extension("custom", 3, UNKNOWN, "config"));
    let response = response(LISTENER, &[custom]);
    let mut envoy = Extensions::default();
    assert_eq!(envoy.filter_response(&response).response, response);
    // A later request of Envoy has no node.
    envoy.read_request(&request(&KNOWN));
    envoy.read_request(&field(2, "type"));
    assert_ne!(envoy.filter_response(&response).response, response);
}

#[test]
fn several_extensions_are_each_reported_and_their_neighbours_kept() {
    let unknown = |name: &str| field(5, extension(name, 4, UNKNOWN, "config"));
    let router = field(5, extension("router", 4, ROUTER, "config"));
    let with = [unknown("one"), router.clone(), unknown("two"), others()].concat();
    let without = [router, others()].concat();
    let of = |manager: &[u8]| response(LISTENER, &[listener_with(MANAGER, manager)]);
    let filtered = envoy().filter_response(&of(&with));
    assert_eq!(filtered.response, of(&without));
    let place = "from Listener > HttpConnectionManager";
    let lines = ["one", "two"].map(|name| format!("removed {name} ({UNKNOWN}) {place}"));
    assert_eq!(filtered.log, lines);
}

#[test]
fn a_filter_state_factory_gets_its_name_in_plain_envoy() {
    let of = |name: &str| {
        let router = field(
            5,
            extension("router", 4, ROUTER, format!("a {name} b {name}")),
        );
        response(LISTENER, &[listener_with(MANAGER, &router)])
    };
    let filtered = envoy().filter_response(&of("istio.hashable_string"));
    assert_eq!(filtered.response, of("envoy.hashable_string"));
    let line = "renamed istio.hashable_string to envoy.hashable_string in Listener";
    assert_eq!(filtered.log, [line]);
}

#[test]
fn what_envoy_rejects_is_reported_with_its_reason() {
    let status = [vec![0x08, 13], field(2, "no such filter")].concat();
    let rejection = [field(2, "type"), field(7, status)].concat();
    let line = "Envoy REJECTED type: no such filter";
    assert_eq!(envoy().read_request(&rejection), [line]);
    assert_eq!(
        envoy().read_request(b"\xff"),
        ["cannot decode a request of Envoy"]
    );
}
