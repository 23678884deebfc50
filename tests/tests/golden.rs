//! The `nft` program prints the example tables as the files beside their builders show them.

#![allow(clippy::unwrap_used, clippy::disallowed_types)] // runs `nft` as the reference

use std::process::Command;

use netns::NetNs;
use nft::{Batch, Socket};
use redirect::example_tables;
use underpass_tests::skip::skip;
use underpass_tests::wire::Wire;

/// What `nft list ruleset` prints in a namespace; `None` if the program is not installed.
fn list_ruleset(netns: &NetNs) -> Option<String> {
    let mut nft = Command::new("nft");
    netns::process::in_netns(&mut nft, netns).unwrap();
    let printed = nft.args(["list", "ruleset"]).output().ok()?;
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.success(), "{stderr}");
    Some(String::from_utf8(printed.stdout).unwrap())
}

/// The kernel accepts every example table and returns it unchanged, and `nft` prints what the
/// table's `Display` prints, which a unit test compares with the file.
#[test]
fn nft_prints_the_documented_tables() {
    let wire = Wire::new();
    for example in example_tables() {
        let (file, table) = (example.file, example.table);
        let write = || {
            let mut batch = Batch::new(&table.name);
            batch.create_table(&table);
            batch.commit(&Socket::open().unwrap()).unwrap();
            nft::dump_table(&Socket::open().unwrap(), &table.name).unwrap()
        };
        let dumped = wire.pod.run(write).unwrap().unwrap();
        let Some(printed) = list_ruleset(&wire.pod) else {
            skip("the nft program is not installed (Debian package nftables)");
            return;
        };
        assert_eq!(printed, table.to_string(), "{file}");
        assert_eq!(dumped, table, "{file}");
        let delete = || {
            let mut batch = Batch::new(&table.name);
            batch.delete_table();
            batch.commit(&Socket::open().unwrap()).unwrap();
        };
        wire.pod.run(delete).unwrap();
    }
}
