//! Whatever the other end sends: no panic.

use handoff::{FromAgent, FromPlugin};
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<FromPlugin>(&bytes);
        let _ = serde_json::from_slice::<FromAgent>(&bytes);
    }
}
