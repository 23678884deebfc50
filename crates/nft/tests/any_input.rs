//! Arbitrary dump messages, as any program in the namespace could cause them, neither panic nor
//! add objects of other tables.

use nft::{ObjectKind, Table};
use proptest::prelude::*;

const KINDS: [ObjectKind; 5] = [
    ObjectKind::Table,
    ObjectKind::Chain,
    ObjectKind::Rule,
    ObjectKind::Set,
    ObjectKind::Elements,
];

/// An attribute whose length field is off by `length_error`.
fn attribute(kind: u16, value: &[u8], length_error: i16) -> Vec<u8> {
    let len = (i16::try_from(value.len() + 4)
        .unwrap_or(i16::MAX)
        .wrapping_add(length_error))
    .cast_unsigned();
    let mut out = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Nested attributes, mostly with real names and numbers.
fn attributes() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "meta", "ct", "socket", "fib", "redir", "nat", "payload", "bitwise", "cmp", "lookup",
        "reject",
    ];
    let more = ["counter", "tproxy", "immediate", "filter", "t"];
    let value = prop_oneof![
        prop::sample::select([&names[..], &more].concat())
            .prop_map(|name| [name.as_bytes(), &[0]].concat()),
        (0u32..20).prop_map(|n| n.to_be_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    let length_error = prop_oneof![9 => Just(0), 1 => any::<i16>()];
    let leaf = (0u16..8, value, length_error.clone())
        .prop_map(|(kind, value, length_error)| attribute(kind, &value, length_error));
    leaf.prop_recursive(5, 64, 6, move |inner| {
        (
            0u16..8,
            prop::collection::vec(inner, 0..6),
            length_error.clone(),
        )
            .prop_map(|(kind, inner, error)| attribute(kind, &inner.concat(), error))
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_handled(
        messages in prop::collection::vec(
            (0usize..5, prop::collection::vec(any::<u8>(), 0..200)),
            0..8,
        )
    ) {
        let mut table = Table::new("t");
        for (kind, bytes) in &messages {
            table.add_message(KINDS[*kind], bytes);
        }
    }

    #[test]
    fn arbitrary_attributes_are_handled(
        messages in prop::collection::vec(
            (0usize..5, any::<bool>(), prop::collection::vec(attributes(), 0..8)),
            0..8,
        )
    ) {
        let (mut table, mut other) = (Table::new("t"), Table::new("another"));
        for (kind, named, inner) in &messages {
            let name = if *named { attribute(1, b"t\0", 0) } else { Vec::new() };
            let bytes = [name, inner.concat()].concat();
            table.add_message(KINDS[*kind], &bytes);
            other.add_message(KINDS[*kind], &bytes);
        }
        prop_assert!(other.is_empty());
        for set in &table.sets {
            prop_assert!(set.elements.is_sorted());
        }
    }
}
