//! Protobuf messages as lists of their encoded fields. What is not changed keeps its bytes, so that
//! no definition of Envoy's messages is needed.

use prost::DecodeError;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_varint};

/// One encoded field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) number: u32,
    /// The content of a string, of bytes or of a message.
    pub(super) content: Option<Vec<u8>>,
    /// Key and value.
    encoded: Vec<u8>,
}

impl Field {
    /// A string, bytes or a message.
    pub(super) fn of(number: u32, content: Vec<u8>) -> Self {
        let mut encoded = Vec::with_capacity(content.len() + 8);
        encode_varint(u64::from(number) << 3 | 2, &mut encoded);
        encode_varint(content.len() as u64, &mut encoded);
        encoded.extend_from_slice(&content);
        Self {
            number,
            content: Some(content),
            encoded,
        }
    }
}

/// Splits a message.
pub(super) fn decode(message: &[u8]) -> Result<Vec<Field>, DecodeError> {
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let start = rest;
        let (number, wire_type) = decode_key(&mut rest)?;
        let content = if wire_type == WireType::LengthDelimited {
            let mut at = rest;
            let length = usize::try_from(decode_varint(&mut at)?).unwrap_or(usize::MAX);
            at.get(..length).map(<[u8]>::to_vec)
        } else {
            None
        };
        prost::encoding::skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
        let encoded = start[..start.len() - rest.remaining()].to_vec();
        fields.push(Field {
            number,
            content,
            encoded,
        });
    }
    Ok(fields)
}

/// Joins fields.
pub(super) fn encode(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(|f| &f.encoded).copied().collect()
}

/// The contents of a field of a message, which may occur several times.
pub(super) fn contents(fields: &[Field], number: u32) -> impl Iterator<Item = &[u8]> {
    let all = fields.iter().filter(move |f| f.number == number);
    all.filter_map(|field| field.content.as_deref())
}

/// A field as text.
pub(super) fn text(fields: &[Field], number: u32) -> String {
    let last = contents(fields, number).last().unwrap_or_default();
    String::from_utf8_lossy(last).into_owned()
}
