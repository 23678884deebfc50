//! Messages between plugin and agent: what can be read is written and read as the same, and every plan can be rendered.
#![no_main]

use handoff::{FromAgent, FromPlugin};
use libfuzzer_sys::fuzz_target;
use redirect::{Observed, Plan};
use serde::{Serialize, de::DeserializeOwned};

fn both_ways<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&message).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), message);
    Some(message)
}

fuzz_target!(|bytes: &[u8]| {
    let _ = both_ways::<FromPlugin>(bytes);
    let sent = match both_ways::<FromAgent>(bytes) {
        Some(FromAgent::Enrol { plan }) => Some(*plan),
        _ => None,
    };
    for plan in sent.into_iter().chain(both_ways::<Plan>(bytes)) {
        let _ = redirect::diff(&plan, &Observed::default());
    }
});
