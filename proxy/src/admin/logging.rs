//! `/logging`: reads and changes log levels at runtime, for `istioctl ztunnel-config log`.

use admin_http::{HttpRequest, HttpResponse, bad_request, method_not_allowed, text};
use http::{Method, StatusCode};
use telemetry::LogFilter;

/// Changes log levels if parameters ask for it, and reports the current ones. `?level=debug` sets
/// the level of all scopes, `?level=access=off,proxy=debug` those of the named scopes, and `?reset`
/// restores the levels from startup.
pub(super) fn respond(filter: &LogFilter, request: &HttpRequest<'_>) -> HttpResponse {
    if request.method != Method::POST {
        return method_not_allowed("POST /logging, /logging?level=LEVEL or /logging?reset");
    }
    let unescaped = request
        .query
        .replace("%3D", "=")
        .replace("%2C", ",")
        .replace("%3A", ":");
    for parameter in unescaped.split('&').filter(|p| !p.is_empty()) {
        let result = match parameter.split_once('=') {
            None if parameter == "reset" => filter.reset(),
            Some(("reset", _)) => filter.reset(),
            Some(("level", level)) => filter.change(level),
            _ => Err(format!(
                "unknown parameter {parameter:?}: expected level or reset"
            )),
        };
        if let Err(reason) = result {
            return bad_request(reason);
        }
    }
    text(
        StatusCode::OK,
        format!("current log level is {}\n", filter.current()),
    )
}
