//! Settings of the data path, under the names of ztunnel's environment variables.

use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{ArgAction, ValueEnum};
use hbone::{Http2, TunnelEngine};
use pod_socket::TcpOptions;
use process::parse_duration as duration;

use super::budget::{Budget, Limits};

/// The part of a pod's budget of unread bytes by which the windows of one tunnel may grow.
const GROWTH_SHARE: u64 = 16;

/// Command-line and environment settings of the data path.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "data")]
pub(crate) struct Options {
    /// Maximum number of connections that share an outgoing tunnel. The peer may set a lower limit.
    #[arg(
        long,
        env = "POOL_MAX_STREAMS_PER_CONNECTION",
        default_value_t = 100,
        value_parser = between(1, 1 << 16)
    )]
    pool_max_streams: u32,
    /// Idle time after which an unused outgoing tunnel is closed, e.g. 30s or 5m.
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", default_value = "5m", value_parser = duration)]
    pub(crate) pool_unused_release: Duration,
    /// HTTP/2 receive window of one tunnel stream, in bytes.
    #[arg(
        long,
        env = "HTTP2_STREAM_WINDOW_SIZE",
        default_value_t = 1 << 20,
        value_parser = between(65_535, (1 << 31) - 1)
    )]
    http2_stream_window: u32,
    /// HTTP/2 receive window of one tunnel, shared by its streams, in bytes. The default is large
    /// enough that stalled streams do not block the others.
    #[arg(
        long,
        env = "HTTP2_CONNECTION_WINDOW_SIZE",
        default_value_t = 1 << 30,
        value_parser = between(65_535, (1 << 31) - 1)
    )]
    http2_connection_window: u32,
    /// Largest HTTP/2 frame accepted, in bytes.
    #[arg(
        long,
        env = "HTTP2_FRAME_SIZE",
        default_value_t = 64 << 10,
        value_parser = between(1 << 14, (1 << 24) - 1)
    )]
    http2_frame: u32,
    /// Connections that are accepted in one pod per second, and at once after a second without any,
    /// tunnels of peers included. More wait until they are accepted. 0 accepts any number.
    #[arg(
        long,
        env = Budget::NewConnections.setting(),
        default_value_t = 10_000,
        value_parser = between(0, 1_000_000)
    )]
    pod_max_new_connections: u32,
    /// What tunnels are made of. `own` is experimental: connections share TLS records and system
    /// calls, and windows grow with the distance of the peer, but tunnels are not handed over to
    /// the next proxy. With TLS12_ENABLED, tunnels use `h2`.
    #[arg(long, env = "UNDERPASS_TUNNEL_ENGINE", value_enum, default_value_t = Engine::H2)]
    tunnel_engine: Engine,
    /// How connections within the node are relayed once they are allowed. `join`: by joining the
    /// sockets of both pods in the proxy, which copies less and encrypts nothing, because no byte
    /// leaves the pods; their stream stays open and ends them.
    #[arg(long, env = "UNDERPASS_SAME_NODE", value_enum, default_value_t = SameNode::Tunnel)]
    pub(crate) same_node: SameNode,
    /// Open connections that one pod may have, tunnels of peers included. More are refused.
    #[arg(
        long,
        env = Budget::PodConnections.setting(),
        default_value_t = 65_536,
        value_parser = between(1, u32::MAX)
    )]
    pod_max_connections: u32,
    /// Received bytes that may wait in the tunnel streams of one pod for applications that do not
    /// read. If there are more, the connection that has been stalled for longest is closed.
    #[arg(
        long,
        env = Budget::PodUnread.setting(),
        default_value_t = 256 << 20,
        value_parser = between(1 << 16, u32::MAX)
    )]
    pod_max_unread_bytes: u32,
    /// The same for all pods of the node together. If there are more, the pod that holds most loses
    /// a connection.
    #[arg(
        long,
        env = Budget::NodeUnread.setting(),
        default_value_t = 512 << 20,
        value_parser = between(1 << 16, u32::MAX)
    )]
    node_max_unread_bytes: u32,
    /// Enable TCP keepalive on connections.
    #[arg(long, env = "KEEPALIVE_ENABLED", default_value = "true", action = ArgAction::Set)]
    keepalive: bool,
    /// Idle time before the first keepalive probe, in whole seconds, e.g. 180s or 3m.
    #[arg(long, env = "KEEPALIVE_TIME", default_value = "180s", value_parser = seconds)]
    keepalive_time: Duration,
    /// Time between unanswered keepalive probes, in whole seconds, e.g. 180s or 3m.
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value = "180s", value_parser = seconds)]
    keepalive_interval: Duration,
    /// Number of unanswered keepalive probes after which a connection is closed.
    #[arg(long, env = "KEEPALIVE_RETRIES", default_value_t = 9, value_parser = between(1, 127))]
    keepalive_retries: u32,
    /// Close connections whose sent data stays unacknowledged for the keepalive time plus all
    /// keepalive intervals (TCP_USER_TIMEOUT).
    #[arg(long, env = "USER_TIMEOUT_ENABLED", default_value = "false", action = ArgAction::Set)]
    user_timeout: bool,
    /// Connect application tunnels to the pod's loopback address instead of its own address.
    #[arg(long, env = "LOCALHOST_APP_TUNNEL", default_value = "true", action = ArgAction::Set)]
    pub(crate) localhost_app_tunnel: bool,
    /// Exchange workload metadata with peers in the `baggage` header, for telemetry.
    #[arg(long, env = "ENABLE_RESPONSE_BAGGAGE", default_value = "true", action = ArgAction::Set)]
    pub(crate) response_baggage: bool,
    /// Log every authorization decision, not only denials.
    #[arg(
        long,
        env = "AUTHZ_POLICY_INFO_LOGGING",
        default_value = "false",
        action = ArgAction::Set
    )]
    pub(crate) authz_policy_info_logging: bool,
}

/// The implementation of tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// The crate h2 over rustls.
    H2,
    /// The crate `tunnel`.
    Own,
}

/// How connections within the node are relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SameNode {
    /// Through a tunnel, as connections to other nodes.
    Tunnel,
    /// By joining both sockets.
    Join,
}

impl Options {
    /// The implementation of tunnels.
    pub(crate) fn tunnel_engine(&self) -> TunnelEngine {
        match self.tunnel_engine {
            Engine::H2 => TunnelEngine::H2,
            Engine::Own => TunnelEngine::Own,
        }
    }

    /// HTTP/2 settings of tunnels.
    pub(crate) fn http2(&self) -> Http2 {
        Http2 {
            streams: self.pool_max_streams,
            stream_window: self.http2_stream_window,
            connection_window: self.http2_connection_window,
            frame: self.http2_frame,
            growth: u64::from(self.pod_max_unread_bytes) / GROWTH_SHARE,
        }
    }

    /// What pods may take from each other.
    pub(crate) fn limits(&self) -> Limits {
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Limits {
            pod_new_connections: self.pod_max_new_connections,
            pod_connections: size(self.pod_max_connections),
            pod_held: size(self.pod_max_unread_bytes),
            node_held: size(self.node_max_unread_bytes),
        }
    }

    /// Options of TCP sockets.
    pub(crate) fn tcp(&self) -> TcpOptions {
        let keepalive = (
            self.keepalive_time,
            self.keepalive_interval,
            self.keepalive_retries,
        );
        let user_timeout = self.keepalive_time + self.keepalive_interval * self.keepalive_retries;
        TcpOptions {
            keepalive: self.keepalive.then_some(keepalive),
            user_timeout: self.user_timeout.then_some(user_timeout),
        }
    }
}

fn between(min: u32, max: u32) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(u64::from(min)..=u64::from(max))
}

/// Parses a duration for a kernel keepalive option: whole seconds, at most 32767
/// (`MAX_TCP_KEEPIDLE`).
fn seconds(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    match value.as_secs() {
        1..=32_767 if value.subsec_nanos() == 0 => Ok(value),
        _ => Err(format!(
            "invalid duration {text:?}: expected whole seconds, 1s to 32767s"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        let command = Command::try_parse_from(["x"].iter().chain(arguments));
        command.map(|c| c.options).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_measured_values() {
        let options = parse(&[]).unwrap();
        let http2 = options.http2();
        assert_eq!(
            (http2.streams, http2.frame, http2.stream_window),
            (100, 65_536, 1_048_576)
        );
        assert_eq!(http2.connection_window, 1_073_741_824);
        assert_eq!(options.tunnel_engine(), TunnelEngine::H2);
        assert_eq!(options.same_node, SameNode::Tunnel);
        let every = Duration::from_secs(180);
        assert_eq!(
            options.tcp(),
            TcpOptions {
                keepalive: Some((every, every, 9)),
                user_timeout: None
            }
        );
    }

    #[test]
    fn valid_options_are_applied_and_invalid_ones_rejected() {
        let options = parse(&[
            "--keepalive-time",
            "10s",
            "--keepalive-interval",
            "5s",
            "--keepalive-retries",
            "3",
        ]);
        let options = Options {
            user_timeout: true,
            ..options.unwrap()
        };
        assert_eq!(options.tcp().user_timeout, Some(Duration::from_secs(25)));
        assert_eq!(
            parse(&["--keepalive", "false"]).unwrap().tcp().keepalive,
            None
        );
        let join = parse(&["--same-node", "join"]).unwrap();
        assert_eq!(join.same_node, SameNode::Join);
        let own = parse(&["--tunnel-engine", "own"]).unwrap();
        assert_eq!(own.tunnel_engine(), TunnelEngine::Own);
        for invalid in [
            ["--tunnel-engine", "other"],
            ["--same-node", "yes"],
            ["--pool-max-streams", "0"],
            ["--http2-frame", "1024"],
            ["--http2-stream-window", "2147483648"],
            ["--keepalive-time", "100ms"],
            ["--keepalive-retries", "128"],
            ["--pool-unused-release", "soon"],
            ["--pod-max-new-connections", "1000001"],
            ["--pod-max-new-connections", "-1"],
        ] {
            assert!(parse(&invalid).is_err(), "{invalid:?}");
        }
    }
}
