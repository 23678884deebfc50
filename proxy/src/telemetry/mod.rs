//! What the proxy tells about itself: the access log, metrics, and the format of log lines.

mod control_metrics;
mod event;
mod log_filter;
mod log_format;
mod metrics;
mod open;
mod process_metrics;

pub(crate) use event::{Direction, Event, Facts, Side};
pub(crate) use log_filter::LogFilter;
pub(crate) use log_format::{DroppedLines, init as init_logs};
pub(crate) use metrics::{DnsLabels, Metrics, OnDemandDnsLabels, Reporter};
pub(crate) use open::Open;
