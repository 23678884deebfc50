//! `/logging`: what is logged, changed while the proxy runs. `istioctl ztunnel-config log` asks for it.

use admin_http::{Answer, Asked, text};
use http::{Method, StatusCode};

use crate::telemetry::LogFilter;

/// Changes or tells what is logged. `?level=debug` is a level for everything, `?level=access=off,proxy=debug` one for each
/// scope beside what holds already, `?reset` what it was at the start.
pub(super) fn answer(filter: &LogFilter, asked: &Asked<'_>) -> Answer {
    if asked.method != Method::POST {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "it takes a POST: /logging, /logging?level=LEVEL, /logging?reset\n",
        );
    }
    let unescaped = asked.query.replace("%3D", "=").replace("%2C", ",").replace("%3A", ":");
    for parameter in unescaped.split('&').filter(|p| !p.is_empty()) {
        let done = match parameter.split_once('=') {
            None if parameter == "reset" => filter.reset(),
            Some(("reset", _)) => filter.reset(),
            Some(("level", level)) => filter.change(level),
            _ => Err(format!("there is no parameter {parameter:?}; there is: level, reset")),
        };
        if let Err(why) = done {
            return text(StatusCode::BAD_REQUEST, format!("{why}\n"));
        }
    }
    text(StatusCode::OK, format!("current log level is {}\n", filter.current()))
}
