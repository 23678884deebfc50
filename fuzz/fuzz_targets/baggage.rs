//! What a peer says of its workload, and that it is told as it was understood.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::baggage::Baggage;

fuzz_target!(|values: Vec<&str>| {
    let understood = Baggage::decode(values);
    let again = Baggage::decode([understood.encode().as_str()]);
    assert_eq!(again.encode(), understood.encode());
});
