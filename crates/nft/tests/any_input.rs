//! Whatever the kernel, or somebody else's program in the namespace, leaves to be read: no panic, and nothing of another
//! table.

use nft::{Dumped, Table};
use proptest::prelude::*;

const DUMPED: [Dumped; 4] = [Dumped::Chain, Dumped::Rule, Dumped::Set, Dumped::Elements];

/// An attribute, whose length may be a lie.
fn attribute(kind: u16, value: &[u8], lie: i16) -> Vec<u8> {
    let len = (i16::try_from(value.len() + 4).unwrap_or(i16::MAX).wrapping_add(lie)).cast_unsigned();
    let mut out = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Attributes within attributes, most of them with the names and numbers of real ones.
fn attributes() -> impl Strategy<Value = Vec<u8>> {
    let names = ["meta", "ct", "socket", "fib", "redir", "nat", "payload", "bitwise", "cmp", "lookup", "reject"];
    let more = ["counter", "tproxy", "immediate", "filter", "t"];
    let value = prop_oneof![
        prop::sample::select([&names[..], &more].concat()).prop_map(|name| [name.as_bytes(), &[0]].concat()),
        (0u32..20).prop_map(|n| n.to_be_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    let lie = prop_oneof![9 => Just(0), 1 => any::<i16>()];
    let leaf = (0u16..8, value, lie.clone()).prop_map(|(kind, value, lie)| attribute(kind, &value, lie));
    leaf.prop_recursive(5, 64, 6, move |inner| {
        (0u16..8, prop::collection::vec(inner, 0..6), lie.clone())
            .prop_map(|(kind, inner, lie)| attribute(kind, &inner.concat(), lie))
    })
}

proptest! {
    #[test]
    fn any_bytes_as_a_dump(messages in prop::collection::vec((0usize..4, prop::collection::vec(any::<u8>(), 0..200)), 0..8)) {
        let mut table = Table::default();
        for (what, bytes) in &messages {
            table.take("t", DUMPED[*what], bytes);
        }
    }

    #[test]
    fn any_attributes_as_a_dump(messages in prop::collection::vec((0usize..4, any::<bool>(), prop::collection::vec(attributes(), 0..8)), 0..8)) {
        let (mut table, mut other) = (Table::default(), Table::default());
        for (what, named, inner) in &messages {
            let name = if *named { attribute(1, b"t\0", 0) } else { Vec::new() };
            let bytes = [name, inner.concat()].concat();
            table.take("t", DUMPED[*what], &bytes);
            other.take("another", DUMPED[*what], &bytes);
        }
        prop_assert_eq!(other, Table::default());
        for set in &table.sets {
            prop_assert!(set.elements.is_sorted());
        }
    }
}
