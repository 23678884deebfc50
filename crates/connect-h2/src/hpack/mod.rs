//! Header compression (HPACK, RFC 7541).

mod decode;
mod encode;
mod huffman;
mod integer;
mod static_table;
mod table;

pub use decode::{Decoder, InvalidBlock};
pub use encode::Encoder;

/// A field of a header list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name: any bytes, whether valid in HTTP or not.
    pub name: &'a [u8],
    /// The value: any bytes.
    pub value: &'a [u8],
    /// Whether the value must never be stored in a table for compression.
    pub is_sensitive: bool,
}

impl Field<'_> {
    /// What the field counts in the limits of tables and header lists, in bytes (section 4.1).
    pub fn size(&self) -> usize {
        table::entry_size(self.name, self.value)
    }
}
