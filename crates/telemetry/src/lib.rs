//! Observability of the proxy: the access log, metrics under Istio's names, and the format of log
//! lines. A connection is one [`ConnectionEvent`], from which log line, counters and the list of
//! open connections are all derived, so that they cannot disagree. What a failure means is for the
//! data path to know; here it only has to be a [`ConnectionFailure`].

#![forbid(unsafe_code)]

mod event;
mod expiring_family;
mod facts;
mod labels;
mod log_buffer;
mod log_filter;
mod log_format;
mod metrics;
mod open_connections;
mod process_metrics;
mod recorder;
mod traffic_series;

pub use event::{ConnectionEvent, ConnectionFailure, log_tunnel_failure};
pub use facts::{ConnectionFacts, Direction, Side};
pub use labels::{CacheResult, DnsLabels, ExcludedLabels, InvalidLabel, Reporter};
pub use log_filter::LogFilter;
pub use log_format::{DroppedLines, LogGuard, init as init_logs};
pub use metrics::Metrics;
pub use open_connections::{OpenConnection, OpenConnections};
pub use process_metrics::Threads;
pub use recorder::Recorder;
pub use traffic_series::SeriesOptions;
