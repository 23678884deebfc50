//! What may be set of the data path, under the names that ztunnel gives its environment variables.

use std::time::Duration;

use clap::ArgAction;
use clap::builder::RangedU64ValueParser;

use super::sockets::Tcp;
use crate::args::duration;
use crate::hbone::Http2;

/// What may be said on the command line and in the environment.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "data")]
pub(crate) struct Options {
    /// How many connections share a tunnel that we open; a peer may allow fewer.
    #[arg(long, env = "POOL_MAX_STREAMS_PER_CONNECTION", default_value_t = 100, value_parser = between(1, 1 << 16))]
    pool_max_streams: u32,
    /// How long a tunnel that nobody uses is kept.
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", default_value = "5m", value_parser = duration)]
    pub(crate) pool_unused_release: Duration,
    /// Bytes that one stream of a tunnel may have on the way to us.
    #[arg(long, env = "HTTP2_STREAM_WINDOW_SIZE", default_value_t = 1 << 20, value_parser = between(65_535, (1 << 31) - 1))]
    http2_stream_window: u32,
    /// The same of all streams of a tunnel together. The default leaves room for streams that nobody reads.
    #[arg(long, env = "HTTP2_CONNECTION_WINDOW_SIZE", default_value_t = 200 << 20, value_parser = between(65_535, (1 << 31) - 1))]
    http2_connection_window: u32,
    /// The largest piece of data that we take.
    #[arg(long, env = "HTTP2_FRAME_SIZE", default_value_t = 64 << 10, value_parser = between(1 << 14, (1 << 24) - 1))]
    http2_frame: u32,
    /// Whether connections that carry nothing are looked at by the kernel.
    #[arg(long, env = "KEEPALIVE_ENABLED", default_value = "true", action = ArgAction::Set)]
    keepalive: bool,
    /// When it begins to look.
    #[arg(long, env = "KEEPALIVE_TIME", default_value = "180s", value_parser = seconds)]
    keepalive_time: Duration,
    /// How often it looks then.
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value = "180s", value_parser = seconds)]
    keepalive_interval: Duration,
    /// After how many looks without an answer the peer is gone.
    #[arg(long, env = "KEEPALIVE_RETRIES", default_value_t = 9, value_parser = between(1, 127))]
    keepalive_retries: u32,
    /// Whether a peer that does not acknowledge what it is sent is gone after the same time (TCP_USER_TIMEOUT).
    #[arg(long, env = "USER_TIMEOUT_ENABLED", default_value = "false", action = ArgAction::Set)]
    user_timeout: bool,
    /// Whether an application tunnel is connected to at the pod's loopback address, or else at the pod's own address.
    #[arg(long, env = "LOCALHOST_APP_TUNNEL", default_value = "true", action = ArgAction::Set)]
    pub(crate) localhost_app_tunnel: bool,
    /// Whether peers are told by `baggage` who answers, and believed by it, for telemetry, who asks.
    #[arg(long, env = "ENABLE_RESPONSE_BAGGAGE", default_value = "true", action = ArgAction::Set)]
    pub(crate) response_baggage: bool,
    /// Whether every decision of a policy is logged, and not only what it denies.
    #[arg(long, env = "AUTHZ_POLICY_INFO_LOGGING", default_value = "false", action = ArgAction::Set)]
    pub(crate) authz_policy_info_logging: bool,
}

impl Options {
    /// What tunnels are made of.
    pub(crate) fn http2(&self) -> Http2 {
        Http2 {
            streams: self.pool_max_streams,
            stream_window: self.http2_stream_window,
            connection_window: self.http2_connection_window,
            frame: self.http2_frame,
        }
    }

    /// How sockets are set.
    pub(crate) fn tcp(&self) -> Tcp {
        let keepalive = (self.keepalive_time, self.keepalive_interval, self.keepalive_retries);
        let gone = self.keepalive_time + self.keepalive_interval * self.keepalive_retries;
        Tcp { keepalive: self.keepalive.then_some(keepalive), user_timeout: self.user_timeout.then_some(gone) }
    }
}

fn between(least: u32, most: u32) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(u64::from(least)..=u64::from(most))
}

/// The kernel counts in seconds, up to nine hours.
fn seconds(text: &str) -> Result<Duration, String> {
    let read = duration(text)?;
    match read.as_secs() {
        1..=32_767 if read.subsec_nanos() == 0 => Ok(read),
        _ => Err(format!("{text:?} is not between 1s and 32767s")),
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

    fn read(arguments: &[&str]) -> Result<Options, String> {
        let command = Command::try_parse_from(["x"].iter().chain(arguments));
        command.map(|c| c.options).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_that_were_measured() {
        let options = read(&[]).unwrap();
        let http2 = options.http2();
        assert_eq!((http2.streams, http2.frame, http2.stream_window), (100, 65_536, 1_048_576));
        assert_eq!(http2.connection_window, 209_715_200);
        let every = Duration::from_secs(180);
        assert_eq!(options.tcp(), Tcp { keepalive: Some((every, every, 9)), user_timeout: None });
    }

    #[test]
    fn what_can_be_said_is_used_and_what_cannot_is_refused() {
        let options = read(&["--keepalive-time", "10s", "--keepalive-interval", "5s", "--keepalive-retries", "3"]);
        let options = Options { user_timeout: true, ..options.unwrap() };
        assert_eq!(options.tcp().user_timeout, Some(Duration::from_secs(25)));
        assert_eq!(read(&["--keepalive", "false"]).unwrap().tcp().keepalive, None);
        for wrong in [
            ["--pool-max-streams", "0"],
            ["--http2-frame", "1024"],
            ["--http2-stream-window", "2147483648"],
            ["--keepalive-time", "100ms"],
            ["--keepalive-retries", "128"],
            ["--pool-unused-release", "soon"],
        ] {
            assert!(read(&wrong).is_err(), "{wrong:?}");
        }
    }
}
