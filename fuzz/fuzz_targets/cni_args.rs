//! The environment of a CNI call: one variable per line.
#![no_main]

use cni_spec::{Command, Environment, KubernetesArgs};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 5] = [
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_PATH",
    "CNI_ARGS",
];

fuzz_target!(|text: &str| {
    let _ = Command::parse(text);
    let values: Vec<&str> = text.splitn(NAMES.len(), '\n').collect();
    let variable = |name: &str| {
        let index = NAMES.iter().position(|n| *n == name)?;
        values.get(index).map(|v| (*v).to_owned())
    };
    let _ = Environment::for_del(variable);
    if let Ok(environment) = Environment::for_add(variable) {
        assert!(environment.netns.is_some_and(|n| n.is_absolute()));
        assert!(
            environment
                .container_id
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'/')
        );
        assert!(!environment.ifname.is_empty() && environment.ifname.len() <= 15);
    }
    let args = KubernetesArgs::parse(text);
    for value in [args.namespace, args.name, args.uid].into_iter().flatten() {
        assert!(!value.is_empty() && !value.contains(';') && text.contains(&value));
    }
});
