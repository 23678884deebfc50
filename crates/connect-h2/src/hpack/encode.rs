//! Encodes header blocks without a dynamic table, so that nothing is remembered of any field.

use serde::{Deserialize, Serialize};

use super::{Field, integer, static_table};

/// Encodes the header blocks of a connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Encoder {
    /// Whether the peer knows that its table has no entries. It must know before it applies any
    /// lower size that it may choose (RFC 7541 section 4.2).
    is_table_closed: bool,
}

impl Encoder {
    /// Appends a header block with these fields. Names must be in lower case.
    pub fn encode<'a>(&mut self, out: &mut Vec<u8>, fields: impl IntoIterator<Item = Field<'a>>) {
        if !self.is_table_closed {
            self.is_table_closed = true;
            integer::encode(out, 0x20, 5, 0);
        }
        for field in fields {
            let literal = if field.is_sensitive { 0x10 } else { 0 };
            match static_table::find(field.name, field.value) {
                Some((index, true)) if !field.is_sensitive => {
                    integer::encode(out, 0x80, 7, index);
                    continue;
                }
                Some((index, _)) => integer::encode(out, literal, 4, index),
                None => {
                    out.push(literal);
                    string(out, field.name);
                }
            }
            string(out, field.value);
        }
    }
}

fn string(out: &mut Vec<u8>, string: &[u8]) {
    integer::encode(out, 0, 7, string.len());
    out.extend_from_slice(string);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hpack::{Decoder, huffman, table::Table};
    use proptest::collection::vec;
    use proptest::prelude::*;

    type Owned = (Vec<u8>, Vec<u8>, bool);

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Vec<Owned> {
        let mut list = Vec::new();
        let decoded = decoder.decode(block, |field| {
            list.push((
                field.name.to_vec(),
                field.value.to_vec(),
                field.is_sensitive,
            ));
        });
        assert_eq!(decoded, Ok(()));
        list
    }

    fn field((name, value, is_sensitive): &Owned) -> Field<'_> {
        Field {
            name,
            value,
            is_sensitive: *is_sensitive,
        }
    }

    #[test]
    fn the_first_block_closes_the_table_and_others_do_not() {
        let mut encoder = Encoder::default();
        let status = || [field(&(b":status".to_vec(), b"200".to_vec(), false)).into_owned()];
        let mut blocks = [Vec::new(), Vec::new()];
        for block in &mut blocks {
            encoder.encode(block, status().iter().map(field));
        }
        assert_eq!(blocks, [vec![0x20, 0x88], vec![0x88]]);
    }

    impl Field<'_> {
        fn into_owned(self) -> Owned {
            (self.name.to_vec(), self.value.to_vec(), self.is_sensitive)
        }
    }

    /// How a peer encodes a field.
    #[derive(Debug, Clone, Copy)]
    struct Style {
        reference: bool,
        incremental: bool,
        compressed: bool,
    }

    /// An encoder that uses everything: the dynamic table, and compressed strings.
    struct Peer(Table);

    impl Peer {
        fn string(out: &mut Vec<u8>, string: &[u8], compressed: bool) {
            if compressed {
                let string = huffman::encode(string);
                integer::encode(out, 0x80, 7, string.len());
                out.extend(string);
            } else {
                super::string(out, string);
            }
        }

        fn encode(&mut self, out: &mut Vec<u8>, (name, value, never): &Owned, style: Style) {
            let find = |wanted: &dyn Fn(&[u8], &[u8]) -> bool| {
                let entries = (1..).map_while(|index| Some((index, self.0.get(index)?)));
                let mut entries = entries.filter(|_| style.reference);
                entries
                    .find(|(_, (name, value))| wanted(name, value))
                    .map(|(index, _)| index)
            };
            if let Some(index) = find(&|n, v| !never && n == name && v == value) {
                return integer::encode(out, 0x80, 7, index);
            }
            let index = find(&|n, _| n == name).unwrap_or(0);
            match (never, style.incremental) {
                (true, _) => integer::encode(out, 0x10, 4, index),
                (false, false) => integer::encode(out, 0, 4, index),
                (false, true) => integer::encode(out, 0x40, 6, index),
            }
            if index == 0 {
                Self::string(out, name, style.compressed);
            }
            Self::string(out, value, style.compressed);
            if !never && style.incremental {
                self.0.insert(name, value);
            }
        }
    }

    fn any_field() -> impl Strategy<Value = Owned> {
        let name = prop_oneof![
            Just(b":status".to_vec()),
            Just(b"x".to_vec()),
            vec(any::<u8>(), 0..20),
        ];
        let value = prop_oneof![Just(b"200".to_vec()), vec(any::<u8>(), 0..200)];
        (name, value, any::<bool>())
    }

    fn any_style() -> impl Strategy<Value = Style> {
        any::<(bool, bool, bool)>().prop_map(|(reference, incremental, compressed)| Style {
            reference,
            incremental,
            compressed,
        })
    }

    proptest! {
        #[test]
        fn encoded_fields_are_decoded(blocks in vec(vec(any_field(), 0..10), 1..4)) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(0));
            for fields in blocks {
                let mut block = Vec::new();
                encoder.encode(&mut block, fields.iter().map(field));
                prop_assert_eq!(decode(&mut decoder, &block), fields);
            }
        }

        #[test]
        fn fields_of_a_peer_with_a_table_are_decoded(
            blocks in vec(
                (prop::option::of(0..500_usize), vec((any_field(), any_style()), 0..10)),
                1..8,
            ),
        ) {
            let (mut peer, mut decoder) = (Peer(Table::new(500)), Decoder::new(500));
            for (resize, fields) in blocks {
                let mut block = Vec::new();
                if let Some(size) = resize {
                    peer.0.resize(size);
                    integer::encode(&mut block, 0x20, 5, size);
                }
                for (field, style) in &fields {
                    peer.encode(&mut block, field, *style);
                }
                let fields: Vec<Owned> = fields.into_iter().map(|(field, _)| field).collect();
                prop_assert_eq!(decode(&mut decoder, &block), fields);
            }
        }

        #[test]
        fn any_block_is_decoded_or_rejected(block in vec(any::<u8>(), 0..100)) {
            let _ = Decoder::new(4096).decode(&block, |_| {});
        }
    }
}
