//! The `baggage` header of a peer: a decoded header round-trips.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::baggage::Baggage;

fuzz_target!(|values: Vec<&str>| {
    let decoded = Baggage::decode(values);
    let again = Baggage::decode([decoded.encode().as_str()]);
    assert_eq!(again.encode(), decoded.encode());
});
