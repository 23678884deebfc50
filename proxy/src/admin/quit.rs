//! `/quitquitquit`: stops the proxy as SIGTERM does.

use admin_http::{Answer, Asked, text};
use http::{Method, StatusCode};
use tokio::sync::Notify;

/// Only a POST stops anything, so that nobody does by looking.
pub(super) fn answer(quit: &Notify, asked: &Asked<'_>) -> Answer {
    if asked.method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "it takes a POST: /quitquitquit\n");
    }
    quit.notify_one();
    text(StatusCode::OK, "stopping; open connections may finish\n")
}
