//! Redirection annotations of a pod: one per line, in the order of [`redirect::ANNOTATIONS`].
#![no_main]

use libfuzzer_sys::fuzz_target;
use redirect::{ANNOTATIONS, Plan};

fuzz_target!(|text: &str| {
    let values: Vec<&str> = text.split('\n').collect();
    let get = |key: &str| {
        values
            .get(ANNOTATIONS.iter().position(|a| *a == key)?)
            .copied()
    };
    let mut plan = Plan::for_pod([]);
    match plan.apply_annotations(get) {
        Err(_) => assert_eq!(
            plan,
            Plan::for_pod([]),
            "a rejected annotation leaves the plan unchanged"
        ),
        Ok(_) => {
            for interface in &plan.reroute_interfaces {
                let name = interface.as_str();
                assert!(
                    (1..=15).contains(&name.len())
                        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
                );
            }
            assert!(
                plan.exclude
                    .inbound_cidrs
                    .iter()
                    .chain(&plan.exclude.outbound_cidrs)
                    .all(|n| n.prefix_len() > 0)
            );
            assert!(
                !plan.exclude.inbound_ports.contains(&0)
                    && !plan.exclude.outbound_ports.contains(&0)
            );
        }
    }
});
