//! Packets to messages and back, with a size limit.

use prost::Message;

/// The largest packet that an agent sends, in bytes: ztunnel reads no more than this.
pub const MAX_REQUEST: usize = 1024;

/// The largest packet that an agent reads, in bytes. An answer carries an error text of the proxy's choice.
pub const MAX_RESPONSE: usize = 16 * 1024;

/// Why a packet is no message, or a message no packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the protocol allows. Likely cause: a name that Kubernetes would not allow, or another protocol.
    #[error("a packet of {len} bytes; at most {limit} are allowed")]
    TooLarge {
        /// How many.
        len: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Not a protobuf message of this protocol.
    #[error("not a message of this protocol: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Writes a message.
///
/// # Errors
/// [`CodecError::TooLarge`].
pub fn encode(message: &impl Message, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = message.encode_to_vec();
    check(bytes.len(), limit)?;
    Ok(bytes)
}

/// Reads a message.
///
/// # Errors
/// [`CodecError`].
pub fn decode<M: Message + Default>(packet: &[u8], limit: usize) -> Result<M, CodecError> {
    check(packet.len(), limit)?;
    Ok(M::decode(packet)?)
}

fn check(len: usize, limit: usize) -> Result<(), CodecError> {
    if len > limit { Err(CodecError::TooLarge { len, limit }) } else { Ok(()) }
}
