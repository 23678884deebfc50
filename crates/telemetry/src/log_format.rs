//! Log lines in Istio's format: `time level scope message key=value …`, or one JSON object each.

use std::fmt::{self, Write};
use std::io;
use std::sync::Arc;

use error_code::printable;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::log_buffer::LogBuffer;
use crate::log_filter::LogFilter;

/// The log's end of the process: dropping it writes all lines that are buffered.
pub struct LogGuard(LogBuffer);

impl LogGuard {
    /// Writes the buffered lines when called, by a process that is about to abort.
    pub fn flusher(&self) -> impl Fn() + Send + Sync + use<> {
        let buffer = self.0.clone();
        move || buffer.flush()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Counter of the log lines dropped because standard output was read too slowly.
#[derive(Debug, Clone, Default)]
pub struct DroppedLines(pub(super) LogBuffer);

impl DroppedLines {
    pub(super) fn count(&self) -> usize {
        self.0.dropped()
    }
}

/// Initializes logging to standard output, configured by `RUST_LOG` and `LOG_FORMAT`.
///
/// # Errors
/// If the thread that writes the log cannot be started.
pub fn init() -> io::Result<(LogGuard, LogFilter, DroppedLines)> {
    let buffer = LogBuffer::start(io::stdout())?;
    let dropped = DroppedLines(buffer.clone());
    let guard = LogGuard(buffer.clone());
    let requested = std::env::var("RUST_LOG").ok();
    let valid = requested.filter(|f| !f.is_empty() && EnvFilter::try_new(f).is_ok());
    let initial = valid.unwrap_or_else(|| "info".to_owned());
    let json = std::env::var("LOG_FORMAT").is_ok_and(|f| f == "json");
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&initial))
        .with_writer(buffer);
    let subscriber = subscriber
        .event_format(IstioFormat { json })
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    subscriber.init();
    let apply = move |filter| handle.reload(filter).map_err(|e| e.to_string());
    Ok((guard, LogFilter::new(initial, Arc::new(apply)), dropped))
}

struct IstioFormat {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for IstioFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let meta = event.metadata();
        let level = meta.level().as_str().to_ascii_lowercase();
        let scope = meta
            .target()
            .strip_prefix("underpass_proxy::")
            .unwrap_or(meta.target());
        if self.json {
            let mut fields = JsonFields(Map::new());
            for (key, value) in [("level", level.as_str()), ("time", &time), ("scope", scope)] {
                fields.0.insert(key.to_owned(), value.into());
            }
            event.record(&mut fields);
            let object = Value::Object(fields.0).to_string();
            return writeln!(writer, "{}", printable::line(&object));
        }
        let mut fields = PlainFields::default();
        event.record(&mut fields);
        writeln!(
            writer,
            "{time}\t{level}\t{scope}\t{}\t{}",
            printable::line(&fields.message),
            printable::line(fields.rest.trim_start())
        )
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
        self.0
            .insert(field.name().to_owned(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The line that is logged for a hostile name, as a field and in a message.
    fn logged(json: bool) -> String {
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .event_format(IstioFormat { json })
            .with_writer(move || Shared(writer.clone()))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let name = "\u{1b}[31m\u{9b}0m\nfake";
            tracing::info!(shown = %name, quoted = name, "name {name}");
        });
        let bytes = lines.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn names_cannot_control_a_terminal_or_add_lines() {
        for json in [false, true] {
            let line = logged(json);
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            let text = line.trim_end();
            assert!(
                text.chars().all(|c| c == '\t' || !c.is_control()),
                "{line:?}"
            );
            assert!(text.contains("fake"), "{line:?}");
        }
        let object: Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(object["quoted"], "\u{1b}[31m\u{9b}0m\nfake");
    }
}
