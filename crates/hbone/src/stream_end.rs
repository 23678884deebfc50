//! What a peer means by an RST_STREAM, which ends a stream as a whole, both directions at once.

use h2::Reason;
use http::header::{HeaderMap, HeaderValue};

/// The header by which a peer declares, in a request or in its response, that CONNECT_ERROR only
/// ever stands for a TCP reset on the stream.
const CONNECT_ERROR_HEADER: &str = "x-connect-error";
const TCP_RESET: &str = "tcp-reset";

/// What a peer's RST_STREAM with CONNECT_ERROR stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resets {
    /// A TCP reset, as RFC 9113 section 8.5 requires.
    Exact,
    /// A TCP reset, or the normal end of a stream, as with Envoy.
    Ambiguous,
}

impl Resets {
    /// Reads the peer's declaration.
    pub(crate) fn of_peer(headers: &HeaderMap) -> Self {
        match headers.get(CONNECT_ERROR_HEADER) {
            Some(value) if value == TCP_RESET => Self::Exact,
            _ => Self::Ambiguous,
        }
    }

    /// Whether an RST_STREAM is an orderly end. Envoy ends the streams of servers that have
    /// finished with NO_ERROR, INTERNAL_ERROR or CONNECT_ERROR, the last two only after data; a
    /// stream of which nothing arrived was reset.
    pub(crate) fn is_orderly_end(self, reason: Reason, has_data: bool) -> bool {
        match reason {
            Reason::NO_ERROR => true,
            Reason::INTERNAL_ERROR | Reason::CONNECT_ERROR => has_data && self == Self::Ambiguous,
            _ => false,
        }
    }

    /// The headers of the response that accepts a request.
    pub(crate) fn response_headers(baggage: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        Self::declare(&mut headers);
        if let Some(Ok(baggage)) = baggage.map(str::parse) {
            headers.insert("baggage", baggage);
        }
        headers
    }

    /// Declares that this end's resets are exact.
    pub(crate) fn declare(headers: &mut HeaderMap) {
        let value = HeaderValue::from_static(TCP_RESET);
        headers.insert(CONNECT_ERROR_HEADER, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_normal_ends_are_no_resets() {
        use Resets::{Ambiguous, Exact};
        for (reason, ends) in [
            // After data of an Envoy, of Underpass; without data.
            (Reason::NO_ERROR, [true, true, true]),
            (Reason::INTERNAL_ERROR, [true, false, false]),
            (Reason::CONNECT_ERROR, [true, false, false]),
            (Reason::CANCEL, [false, false, false]),
            (Reason::ENHANCE_YOUR_CALM, [false, false, false]),
        ] {
            let seen = [(Ambiguous, true), (Exact, true), (Ambiguous, false)]
                .map(|(resets, has_data)| resets.is_orderly_end(reason, has_data));
            assert_eq!(seen, ends, "{reason:?}");
        }
    }

    #[test]
    fn only_the_declaration_makes_resets_exact() {
        let mut headers = HeaderMap::new();
        assert_eq!(Resets::of_peer(&headers), Resets::Ambiguous);
        headers.insert(CONNECT_ERROR_HEADER, HeaderValue::from_static("envoy"));
        assert_eq!(Resets::of_peer(&headers), Resets::Ambiguous);
        Resets::declare(&mut headers);
        assert_eq!(Resets::of_peer(&headers), Resets::Exact);
    }
}
