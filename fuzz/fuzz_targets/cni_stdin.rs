//! Standard input of a CNI call: the output is JSON with the version and the same addresses.
#![no_main]

use cni_spec::{Command, Config, PrevResult};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|bytes: &[u8]| {
    let _ = Config::parse_leniently(bytes);
    let configured = Config::parse(Command::Add, bytes)
        .ok()
        .and_then(|c| Some((c.prev_result?, c.cni_version)));
    // Most inputs are not a configuration, but may be a previous result.
    let alone = std::str::from_utf8(bytes)
        .ok()
        .and_then(|t| RawValue::from_string(t.to_owned()).ok());
    for (raw, version) in configured
        .into_iter()
        .chain(alone.map(|raw| (raw, "1.1.0".to_owned())))
    {
        let Ok(result) = PrevResult::parse(raw.clone()) else {
            continue;
        };
        let output = result.to_output(&version);
        let again = RawValue::from_string(output.clone()).expect("the output is JSON");
        let again = PrevResult::parse(again).expect("the output is a result");
        assert_eq!(again.addresses(), result.addresses());
        // A number that does not fit into a Value is passed through unchanged.
        if let Ok(value) = serde_json::from_str::<Value>(&output) {
            assert!(value["cniVersion"].is_string(), "{output}");
        }
        assert_eq!(
            again.to_output("0.4.0"),
            output,
            "printing the output again changes nothing"
        );
    }
});
