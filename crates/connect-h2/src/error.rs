//! Errors, with the code that HTTP/2 has for each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The identifier of a stream: odd if the client opened it. Never 0 in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub u32);

impl StreamId {
    /// Stands for the connection.
    pub const CONNECTION: Self = Self(0);
    /// The largest identifier.
    pub const MAX: Self = Self(0x7fff_ffff);

    /// Whether this stands for the connection.
    pub fn is_connection(self) -> bool {
        self == Self::CONNECTION
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An error code of RST_STREAM and GOAWAY (RFC 9113 section 7). Unknown codes are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ErrorCode(pub u32);

/// Defines the constants and their names.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Not an error.
    NO_ERROR = 0x0;
    /// An unspecific violation of the protocol.
    PROTOCOL_ERROR = 0x1;
    /// The sender of the code failed.
    INTERNAL_ERROR = 0x2;
    /// More data than the window allows.
    FLOW_CONTROL_ERROR = 0x3;
    /// No acknowledgement of the settings.
    SETTINGS_TIMEOUT = 0x4;
    /// A frame on a half-closed stream.
    STREAM_CLOSED = 0x5;
    /// A frame of an invalid size.
    FRAME_SIZE_ERROR = 0x6;
    /// The request was not processed: it may be repeated.
    REFUSED_STREAM = 0x7;
    /// The sender has cancelled the stream.
    CANCEL = 0x8;
    /// The state of the header compression is lost.
    COMPRESSION_ERROR = 0x9;
    /// The connection behind a CONNECT was reset.
    CONNECT_ERROR = 0xa;
    /// The peer causes excessive load.
    ENHANCE_YOUR_CALM = 0xb;
    /// TLS does not meet the requirements.
    INADEQUATE_SECURITY = 0xc;
    /// The request needs HTTP/1.1.
    HTTP_1_1_REQUIRED = 0xd;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Violation {
    /// A client did not begin with the connection preface: it speaks another protocol.
    #[error("the peer does not speak HTTP/2: the connection preface is missing")]
    NoPreface,
    /// The first frame was another one than SETTINGS.
    #[error("the first frame of the peer is not SETTINGS")]
    NoSettings,
    /// A frame is larger than the setting allows.
    #[error("a frame is larger than MAX_FRAME_SIZE")]
    FrameTooLarge,
    /// A frame has a length that its type does not allow.
    #[error("a frame has an invalid length for its type")]
    InvalidFrameLength,
    /// A frame is on a stream where its type must not be, or on an idle one.
    #[error("a frame is on a stream on which its type is not allowed")]
    UnexpectedStream,
    /// The padding is as long as the payload, or longer.
    #[error("the padding exceeds the frame")]
    InvalidPadding,
    /// A value of SETTINGS is outside of its range.
    #[error("a setting is out of range")]
    InvalidSetting,
    /// A window is larger than 2^31 - 1 after a change of the initial window.
    #[error("a setting overflows a flow-control window")]
    SettingOverflowsWindow,
    /// SETTINGS were acknowledged that were not sent.
    #[error("an acknowledgement of SETTINGS without SETTINGS")]
    UnexpectedAcknowledgement,
    /// A WINDOW_UPDATE of 0 bytes.
    #[error("a WINDOW_UPDATE of 0 bytes")]
    EmptyWindowUpdate,
    /// A window is larger than 2^31 - 1.
    #[error("a WINDOW_UPDATE overflows the flow-control window")]
    WindowOverflow,
    /// The peer sent more data than its window allowed.
    #[error("more data than the flow-control window allows")]
    WindowExceeded,
    /// PUSH_PROMISE, although it is disabled.
    #[error("PUSH_PROMISE, which is disabled")]
    PushPromise,
    /// A header block was interrupted by another frame, or continued without a beginning.
    #[error("a header block is not contiguous")]
    InterruptedHeaders,
    /// A header block cannot be decoded.
    #[error("a header block cannot be decoded")]
    InvalidCompression,
    /// A header block is too long to be decoded, or has too many parts.
    #[error("a header block is too long")]
    HeaderBlockTooLong,
    /// The fields of a request or response exceed the limit.
    #[error("the header list is too large")]
    HeaderListTooLarge,
    /// A request or response is malformed.
    #[error("a malformed request or response")]
    MalformedHead,
    /// A frame followed the end of the stream.
    #[error("a frame after the end of its stream")]
    StreamClosed,
    /// More streams than the setting allows.
    #[error("more concurrent streams than allowed")]
    TooManyStreams,
    /// Too many frames that cost work and achieve nothing.
    #[error("too many frames that achieve nothing, such as PING, SETTINGS or resets")]
    Flood,
    /// The last stream of a GOAWAY is later than that of an earlier one.
    #[error("the last stream of GOAWAY increased")]
    GoAwayIncreased,
    /// The peer did not send or acknowledge SETTINGS in time.
    #[error("the peer did not complete the exchange of SETTINGS in time")]
    SettingsTimeout,
    /// The peer sent nothing at all, not even the answer to a ping.
    #[error("the peer did not answer a ping")]
    PingTimeout,
}

impl Violation {
    /// The code that is sent to the peer.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::NoPreface
            | Self::NoSettings
            | Self::UnexpectedStream
            | Self::InvalidPadding
            | Self::InvalidSetting
            | Self::UnexpectedAcknowledgement
            | Self::EmptyWindowUpdate
            | Self::PushPromise
            | Self::InterruptedHeaders
            | Self::MalformedHead
            | Self::GoAwayIncreased => ErrorCode::PROTOCOL_ERROR,
            Self::FrameTooLarge | Self::InvalidFrameLength => ErrorCode::FRAME_SIZE_ERROR,
            Self::SettingOverflowsWindow | Self::WindowOverflow | Self::WindowExceeded => {
                ErrorCode::FLOW_CONTROL_ERROR
            }
            Self::InvalidCompression => ErrorCode::COMPRESSION_ERROR,
            Self::HeaderBlockTooLong | Self::HeaderListTooLarge | Self::Flood => {
                ErrorCode::ENHANCE_YOUR_CALM
            }
            Self::StreamClosed => ErrorCode::STREAM_CLOSED,
            Self::TooManyStreams => ErrorCode::REFUSED_STREAM,
            Self::SettingsTimeout => ErrorCode::SETTINGS_TIMEOUT,
            Self::PingTimeout => ErrorCode::NO_ERROR,
        }
    }
}

/// A violation of the protocol, and what it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The connection must close.
    #[error(transparent)]
    Connection(#[from] Violation),
    /// The stream must be reset; the others continue.
    #[error("stream {0}: {1}")]
    Stream(StreamId, Violation),
}

impl ProtocolError {
    /// The code that is sent to the peer.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Connection(violation) | Self::Stream(_, violation) => violation.code(),
        }
    }
}
