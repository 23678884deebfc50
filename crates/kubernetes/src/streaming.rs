//! Decides from an error whether the API server can stream lists. If it cannot, it rejects the
//! option, or reports in the stream that its etcd (before 3.4.25) lacks watch progress. Every other
//! error, such as an overload or a missing permission, says nothing about streaming.

use kube::core::Status;
use kube::runtime::watcher;

/// Responses of an API server that does not accept the options of a streamed list: a bad request,
/// an expired version, and invalid options (`metav1.StatusReasonInvalid`).
const REJECTIONS: [u16; 3] = [400, 410, 422];
/// The option that an API server names which does not know or does not allow it.
const OPTION: &str = "sendInitialEvents";
/// The storage feature that an API server names which lacks it, with status 500.
const STORAGE_FEATURE: &str = "RequestWatchProgress";

/// Whether this error of a streamed list means that the API server does not stream lists.
pub(crate) fn is_unsupported(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => rejects_streaming(status),
        _ => false,
    }
}

fn rejects_streaming(status: &Status) -> bool {
    let names = |word| status.message.contains(word);
    REJECTIONS.contains(&status.code) || names(OPTION) || names(STORAGE_FEATURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Box<Status> {
        Box::new(Status {
            code,
            message: message.into(),
            ..Status::default()
        })
    }

    #[test]
    fn only_a_rejection_of_the_option_ends_streaming() {
        for (code, message, unsupported) in [
            (400, "unknown option", true),
            (410, "too old resource version", true),
            (422, "ListOptions is invalid", true),
            (403, "sendInitialEvents is forbidden for watch", true),
            (
                500,
                "the storage feature RequestWatchProgress is disabled",
                true,
            ),
            (401, "Unauthorized", false),
            (403, "namespaces is forbidden: User cannot watch", false),
            (429, "too many requests", false),
            (500, "etcdserver: leader changed", false),
            (503, "apiserver not ready", false),
            (504, "Too large resource version", false),
        ] {
            let in_stream = watcher::Error::WatchError(status(code, message));
            let at_start = kube::Error::Api(status(code, message));
            let at_start = watcher::Error::WatchStartFailed(at_start);
            for error in [in_stream, at_start] {
                assert_eq!(is_unsupported(&error), unsupported, "{error:?}");
            }
        }
    }

    #[test]
    fn a_network_error_does_not_end_streaming() {
        let broken = || kube::Error::ReadEvents(std::io::Error::other("connection reset"));
        assert!(!is_unsupported(&watcher::Error::WatchStartFailed(broken())));
        assert!(!is_unsupported(&watcher::Error::WatchFailed(broken())));
        assert!(!is_unsupported(&watcher::Error::NoResourceVersion));
    }
}
