//! The log filter: set by `RUST_LOG` at startup and changeable at runtime.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Activates a filter.
type Apply = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// The active log filter.
#[derive(Clone)]
pub struct LogFilter {
    initial: String,
    current: Arc<Mutex<String>>,
    apply: Arc<Apply>,
}

impl LogFilter {
    pub(super) fn new(initial: String, apply: Arc<Apply>) -> Self {
        Self {
            current: Arc::new(Mutex::new(initial.clone())),
            initial,
            apply,
        }
    }

    /// The active filter, in the syntax of `RUST_LOG`.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Restores the initial filter.
    pub fn reset(&self) -> Result<(), String> {
        self.set(self.initial.clone())
    }

    /// Changes the level of all scopes (`LEVEL`) or of the given ones (`SCOPE=LEVEL,…`).
    pub fn change(&self, directives: &str) -> Result<(), String> {
        if parse_level(directives).is_some() {
            return self.set(directives.to_owned());
        }
        let mut targets = self.current().parse::<Targets>().unwrap_or_default();
        for part in directives.split(',') {
            let parsed = part
                .split_once('=')
                .and_then(|(scope, level)| Some((parse_scope(scope)?, parse_level(level)?)));
            let (scope, level) = parsed.ok_or_else(|| {
                format!("invalid log filter {part:?}: expected LEVEL or SCOPE=LEVEL")
            })?;
            // Log lines show the proxy's own modules without the crate name.
            targets = targets
                .with_target(scope, level)
                .with_target(format!("underpass_proxy::{scope}"), level);
        }
        self.set(targets.to_string())
    }

    fn set(&self, filter: String) -> Result<(), String> {
        let parsed = EnvFilter::try_new(&filter).map_err(|e| e.to_string())?;
        (self.apply)(parsed)?;
        *self.current.lock() = filter;
        Ok(())
    }
}

fn parse_level(text: &str) -> Option<LevelFilter> {
    text.parse().ok().filter(|_| !text.is_empty())
}

fn parse_scope(text: &str) -> Option<&str> {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || b"_:-".contains(&b);
    Some(text).filter(|t| !t.is_empty() && t.bytes().all(is_valid))
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFilter")
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> LogFilter {
        LogFilter::new("info".to_owned(), Arc::new(|_| Ok(())))
    }

    #[test]
    fn levels_apply_to_all_scopes_or_to_the_given_ones() {
        let filter = filter();
        filter.change("debug").unwrap();
        assert_eq!(filter.current(), "debug");
        filter.change("access=off,dns::tcp=trace").unwrap();
        let now = filter.current();
        for part in ["debug", "access=off", "underpass_proxy::dns::tcp=trace"] {
            assert!(now.contains(part), "{part} in {now}");
        }
        filter.reset().unwrap();
        assert_eq!(filter.current(), "info");
    }

    #[test]
    fn invalid_filters_are_rejected() {
        let filter = filter();
        for invalid in [
            "",
            "loud",
            "access=loud",
            "access=",
            "=debug",
            "access=debug=x",
            "a[b]=info",
            "access=off,",
        ] {
            assert!(filter.change(invalid).is_err(), "{invalid}");
        }
        assert_eq!(filter.current(), "info");
    }
}
