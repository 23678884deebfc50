//! Messages of an nf_tables dump. A kind byte and a length byte precede each message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nft::{ObjectKind, Table};

const KINDS: [ObjectKind; 5] = [
    ObjectKind::Table,
    ObjectKind::Chain,
    ObjectKind::Rule,
    ObjectKind::Set,
    ObjectKind::Elements,
];

fuzz_target!(|bytes: &[u8]| {
    let (mut table, mut other) = (Table::new("t"), Table::new("another"));
    let mut rest = bytes;
    while let [kind, length, tail @ ..] = rest {
        let (message, tail) = tail
            .split_at_checked(usize::from(*length))
            .unwrap_or((tail, &[]));
        rest = tail;
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        // Prepend the table name, so that not every message is skipped.
        let named = [&[6, 0, 1, 0, b't', 0, 0, 0], message].concat();
        table.add_message(kind, &named);
        other.add_message(kind, &named);
    }
    assert!(other.is_empty());
    assert!(table.sets.iter().all(|s| s.elements.is_sorted()));
});
