//! Messages of a dump of nf_tables. Two bytes before each say what it is about and how long it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nft::{Dumped, Table};

const DUMPED: [Dumped; 4] = [Dumped::Chain, Dumped::Rule, Dumped::Set, Dumped::Elements];

fuzz_target!(|bytes: &[u8]| {
    let (mut table, mut other) = (Table::default(), Table::default());
    let mut rest = bytes;
    while let [what, length, tail @ ..] = rest {
        let (message, tail) = tail.split_at_checked(usize::from(*length)).unwrap_or((tail, &[]));
        rest = tail;
        let what = DUMPED[usize::from(*what) % DUMPED.len()];
        // The name of the table, so that not all is left out.
        let named = [&[6, 0, 1, 0, b't', 0, 0, 0], message].concat();
        table.take("t", what, &named);
        other.take("another", what, &named);
    }
    assert_eq!(other, Table::default());
    assert!(table.sets.iter().all(|s| s.elements.is_sorted()));
});
