//! Arbitrary bytes from the other end cause no panic.

use handoff::{FromAgent, FromPlugin};
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<FromPlugin>(&bytes);
        let _ = serde_json::from_slice::<FromAgent>(&bytes);
    }
}
