//! `/quitquitquit`: stops the proxy like SIGTERM.

use admin_http::{HttpRequest, HttpResponse, method_not_allowed, text};
use http::{Method, StatusCode};
use tokio::sync::Notify;

/// Requires a POST, so that opening the URL in a browser stops nothing.
pub(super) fn respond(quit: &Notify, request: &HttpRequest<'_>) -> HttpResponse {
    if request.method != Method::POST {
        return method_not_allowed("POST /quitquitquit");
    }
    quit.notify_one();
    text(StatusCode::OK, "stopping; open connections may finish\n")
}
