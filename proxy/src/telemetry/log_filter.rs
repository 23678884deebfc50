//! What is logged: said at the start by `RUST_LOG`, and changed while the proxy runs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Puts a filter in force.
type Apply = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// The filter of log lines.
#[derive(Clone)]
pub(crate) struct LogFilter {
    at_start: String,
    current: Arc<Mutex<String>>,
    apply: Arc<Apply>,
}

impl LogFilter {
    pub(super) fn new(at_start: String, apply: Arc<Apply>) -> Self {
        Self { current: Arc::new(Mutex::new(at_start.clone())), at_start, apply }
    }

    /// What is logged now, as `RUST_LOG` would say it.
    pub(crate) fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs as at the start again.
    pub(crate) fn reset(&self) -> Result<(), String> {
        self.set(self.at_start.clone())
    }

    /// `LEVEL` for everything, or `SCOPE=LEVEL,…` for these scopes, beside what holds for others.
    pub(crate) fn change(&self, asked: &str) -> Result<(), String> {
        if level(asked).is_some() {
            return self.set(asked.to_owned());
        }
        let mut targets = self.current().parse::<Targets>().unwrap_or_default();
        for part in asked.split(',') {
            let parsed = part.split_once('=').and_then(|(scope, of)| Some((is_scope(scope)?, level(of)?)));
            let (scope, level) = parsed.ok_or_else(|| format!("{part:?} is no level and no SCOPE=LEVEL"))?;
            // Log lines name a module of ours without the name of the program.
            targets = targets.with_target(scope, level).with_target(format!("underpass_proxy::{scope}"), level);
        }
        self.set(targets.to_string())
    }

    fn set(&self, filter: String) -> Result<(), String> {
        let parsed = EnvFilter::try_new(&filter).map_err(|e| e.to_string())?;
        (self.apply)(parsed)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = filter;
        Ok(())
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    text.parse().ok().filter(|_| !text.is_empty())
}

fn is_scope(text: &str) -> Option<&str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_:-".contains(&b);
    Some(text).filter(|t| !t.is_empty() && t.bytes().all(fine))
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFilter").field("current", &self.current()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> LogFilter {
        LogFilter::new("info".to_owned(), Arc::new(|_| Ok(())))
    }

    #[test]
    fn a_level_is_for_everything_and_a_scope_for_itself() {
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
    fn nonsense_changes_nothing() {
        let filter = filter();
        for nonsense in ["", "loud", "access=loud", "access=", "=debug", "access=debug=x", "a[b]=info", "access=off,"] {
            assert!(filter.change(nonsense).is_err(), "{nonsense}");
        }
        assert_eq!(filter.current(), "info");
    }
}
