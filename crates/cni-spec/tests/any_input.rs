//! Arbitrary input from a runtime causes no panic.
#![allow(clippy::unwrap_used)]

use cni_spec::{Command, Config, Environment, PrevResult};
use proptest::prelude::*;
use serde_json::value::RawValue;

proptest! {
    #[test]
    fn any_stdin_causes_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::parse(Command::Add, &bytes);
        let _ = Config::parse_leniently(&bytes);
    }

    #[test]
    fn any_prev_result_passes_unchanged_or_is_rejected(
        ips in prop::collection::vec(any::<String>(), 0..4),
        other in any::<String>(),
    ) {
        let ips: Vec<_> = ips.into_iter().map(|a| serde_json::json!({ "address": a })).collect();
        let text = serde_json::json!({
            "cniVersion": "1.0.0",
            "ips": ips,
            "other": other,
        }).to_string();
        if let Ok(result) = PrevResult::parse(RawValue::from_string(text.clone()).unwrap()) {
            prop_assert_eq!(result.to_output("1.0.0"), text, "the output is unchanged");
        }
    }

    #[test]
    fn any_environment_causes_no_panic(
        command in any::<String>(),
        id in any::<String>(),
        args in any::<String>(),
        ifname in any::<String>(),
    ) {
        let _ = Command::parse(&command);
        let variable = |name: &str| Some(match name {
            "CNI_CONTAINERID" => id.clone(),
            "CNI_ARGS" => args.clone(),
            "CNI_IFNAME" => ifname.clone(),
            _ => "/x".to_owned(),
        });
        let _ = Environment::for_add(variable);
        let _ = Environment::for_del(variable);
    }
}
