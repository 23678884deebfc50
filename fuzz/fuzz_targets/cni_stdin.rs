//! Standard input of a call: what is printed is JSON with the version and with the same addresses.
#![no_main]

use cni_spec::{Config, PrevResult};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|bytes: &[u8]| {
    let _ = Config::parse_leniently(bytes);
    let configured = Config::parse(bytes).ok().and_then(|c| Some((c.prev_result?, c.cni_version)));
    // Most inputs are no configuration; any of them may be a previous result.
    let alone = std::str::from_utf8(bytes).ok().and_then(|t| RawValue::from_string(t.to_owned()).ok());
    for (raw, version) in configured.into_iter().chain(alone.map(|raw| (raw, "1.1.0".to_owned()))) {
        let Ok(result) = PrevResult::parse(raw.clone()) else { continue };
        let output = result.to_output(&version);
        let again = RawValue::from_string(output.clone()).expect("what is printed is JSON");
        let again = PrevResult::parse(again).expect("what is printed is a result");
        assert_eq!(again.addresses(), result.addresses());
        // A number that no Value can hold is passed on as it is.
        if let Ok(value) = serde_json::from_str::<Value>(&output) {
            assert!(value["cniVersion"].is_string(), "{output}");
        }
        assert_eq!(again.to_output("0.4.0"), output, "printed once, it stays as it is");
    }
});
