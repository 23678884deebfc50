//! What we write over netlink is what the `nft` program prints.

#![allow(clippy::unwrap_used, clippy::disallowed_types)] // a test that cannot go on stops; `nft` is the oracle here

use std::process::Command;

use redirect::{Plan, apply};
use underpass_tests::skip::skip;
use underpass_tests::wire::{POD4, POD6, Wire};

/// The rules beside the code are those that the kernel holds. `UPDATE_DOCS=1` writes the file.
#[test]
fn the_table_is_as_nft_prints_it() {
    let wire = Wire::new();
    wire.pod.run(|| apply(&Plan::for_pod([POD4, POD6]))).unwrap().unwrap();
    let mut nft = Command::new("nft");
    netns::process::in_netns(&mut nft, &wire.pod).unwrap();
    let Ok(printed) = nft.args(["list", "ruleset"]).output() else {
        skip("the_table_is_as_nft_prints_it", "no nft program (Debian package nftables)");
        return;
    };
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/redirect/src/routed.golden.nft");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(golden, &printed).unwrap();
    }
    assert_eq!(printed, std::fs::read_to_string(golden).unwrap());
}
