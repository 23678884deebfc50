//! Encoding and decoding of packets, with a size limit.

use prost::Message;

/// Maximum size of a request packet, in bytes; ztunnel does not read more.
pub const MAX_REQUEST: usize = 1024;

/// Maximum size of a response packet, in bytes. A response contains the proxy's error text.
pub const MAX_RESPONSE: usize = 16 * 1024;

/// Why a message cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The packet exceeds the limit. Likely cause: an overlong name, or another protocol.
    #[error("packet too large: {len} bytes, limit is {limit}")]
    TooLarge {
        /// Size of the packet in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The packet is not a protobuf message of this protocol.
    #[error("invalid ZDS message: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Encodes a message.
///
/// # Errors
/// Returns [`CodecError::TooLarge`] if the message exceeds `limit` bytes.
pub fn encode(message: &impl Message, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = message.encode_to_vec();
    check_size(bytes.len(), limit)?;
    Ok(bytes)
}

/// Decodes a message.
///
/// # Errors
/// Returns [`CodecError`] if the packet is too large or malformed.
pub fn decode<M: Message + Default>(packet: &[u8], limit: usize) -> Result<M, CodecError> {
    check_size(packet.len(), limit)?;
    Ok(M::decode(packet)?)
}

fn check_size(len: usize, limit: usize) -> Result<(), CodecError> {
    if len > limit {
        Err(CodecError::TooLarge { len, limit })
    } else {
        Ok(())
    }
}
