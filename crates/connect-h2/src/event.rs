//! What happens on a connection.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, StreamId, Violation};
use crate::head::{RequestHead, ResponseHead};

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The settings of the peer apply, the first ones or others. More or fewer streams may be
    /// open.
    Settings,
    /// A client asks for a stream. Only on servers.
    Request {
        /// The stream.
        id: StreamId,
        /// What it asks for.
        head: RequestHead,
    },
    /// The server has answered the request. Only on clients.
    Response {
        /// The stream.
        id: StreamId,
        /// The answer.
        head: ResponseHead,
    },
    /// Data was received.
    Data {
        /// The stream.
        id: StreamId,
        /// Where it is in the input, never empty.
        range: Range<usize>,
    },
    /// A stream changed.
    Stream {
        /// The stream.
        id: StreamId,
        /// The change.
        change: Change,
    },
    /// The peer accepts no streams after `last`; [`Change::Refused`] follows for those that are
    /// open. The others continue.
    GoAway {
        /// The last stream that the peer processes.
        last: StreamId,
        /// Why.
        code: ErrorCode,
    },
}

/// A change of a stream. What the peer sent before was delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The peer has finished sending.
    Ended,
    /// The peer has sent everything and reads no more: it reset the stream without an error, or
    /// with CANCEL after its end.
    Finished {
        /// Which of the two.
        code: ErrorCode,
    },
    /// The peer reset the stream.
    Reset {
        /// The reason.
        code: ErrorCode,
        /// Whether it had sent data.
        has_data: bool,
    },
    /// The peer did not process the request, which may be sent again on another connection.
    Refused,
    /// The peer violated the protocol on this stream, which was therefore reset.
    Failed(Violation),
    /// Data can be sent, after [`crate::Connection::capacity`] returned 0.
    Credit,
}
