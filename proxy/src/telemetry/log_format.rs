//! Log lines as istio's: `time level scope message key=value …`, or one JSON object a line.

use std::fmt::{self, Write};
use std::sync::Arc;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::log_filter::LogFilter;

/// Lines that wait to be written at most; more are dropped, and counted, rather than hold up traffic.
const WAITING_LINES: usize = 10_000;

/// Keeps the writing thread alive; dropping it writes what is left.
pub(crate) struct LogGuard(#[allow(dead_code)] WorkerGuard);

/// How many lines were dropped, because nobody reads as fast as they are written.
#[derive(Debug, Clone)]
pub(crate) struct DroppedLines(ErrorCounter);

impl DroppedLines {
    pub(super) fn count(&self) -> usize {
        self.0.dropped_lines()
    }
}

/// Sends log lines to standard output, as `RUST_LOG` and `LOG_FORMAT` say; the filter can be changed later.
pub(crate) fn init() -> (LogGuard, LogFilter, DroppedLines) {
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_LINES).finish(std::io::stdout());
    let dropped = DroppedLines(writer.error_counter());
    let asked = std::env::var("RUST_LOG").ok().filter(|asked| EnvFilter::try_new(asked).is_ok());
    let at_start = asked.filter(|asked| !asked.is_empty()).unwrap_or_else(|| "info".to_owned());
    let json = std::env::var("LOG_FORMAT").is_ok_and(|f| f == "json");
    let subscriber = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(&at_start)).with_writer(writer);
    let subscriber = subscriber.event_format(IstioFormat { json }).with_filter_reloading();
    let handle = subscriber.reload_handle();
    subscriber.init();
    let apply = move |filter| handle.reload(filter).map_err(|e| e.to_string());
    (LogGuard(guard), LogFilter::new(at_start, Arc::new(apply)), dropped)
}

struct IstioFormat {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for IstioFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let meta = event.metadata();
        let level = meta.level().as_str().to_ascii_lowercase();
        let scope = meta.target().strip_prefix("underpass_proxy::").unwrap_or(meta.target());
        if self.json {
            let mut fields = JsonFields(Map::new());
            for (key, value) in [("level", level.as_str()), ("time", &time), ("scope", scope)] {
                fields.0.insert(key.to_owned(), value.into());
            }
            event.record(&mut fields);
            return writeln!(writer, "{}", Value::Object(fields.0));
        }
        let mut fields = PlainFields::default();
        event.record(&mut fields);
        writeln!(writer, "{time}\t{level}\t{scope}\t{}\t{}", fields.message, fields.rest.trim_start())
    }
}

#[derive(Default)]
struct PlainFields {
    message: String,
    rest: String,
}

impl Visit for PlainFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}

struct JsonFields(Map<String, Value>);

impl Visit for JsonFields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
}
