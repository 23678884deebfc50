//! Messages between plugin and agent: decoded messages round-trip, and every plan can be rendered.
#![no_main]

use handoff::{FromAgent, FromPlugin};
use libfuzzer_sys::fuzz_target;
use redirect::{ObservedState, Plan};
use serde::{Serialize, de::DeserializeOwned};

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
) -> Option<T> {
    let message: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&message).expect("a decoded message can be encoded");
    assert_eq!(
        serde_json::from_slice::<T>(&written).expect("an encoded message can be decoded"),
        message
    );
    Some(message)
}

fuzz_target!(|bytes: &[u8]| {
    let _ = round_trip::<FromPlugin>(bytes);
    let sent = match round_trip::<FromAgent>(bytes) {
        Some(FromAgent::Enrol { plan }) => Some(*plan),
        _ => None,
    };
    for plan in sent.into_iter().chain(round_trip::<Plan>(bytes)) {
        let _ = redirect::diff(&plan, &ObservedState::default());
    }
});
