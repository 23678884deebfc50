//! Istio's redirection, by the programs that Istio runs.

#![allow(clippy::disallowed_types)] // these programs are the point

use std::io::Write;
use std::process::{Command, Stdio};

use netns::NetNs;

/// Runs a program inside a namespace; panics when it fails.
pub fn run(netns: &NetNs, program: &str, args: &str, input: &str) {
    let mut command = Command::new(program);
    command.args(args.split_whitespace()).stdin(Stdio::piped());
    let mut child = netns::process::in_netns(&mut command, netns).unwrap().spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {args}");
}

/// What istio-cni installs in a pod, without DNS.
pub fn install_istio_rules(netns: &NetNs) {
    for (program, family, any) in [("iptables-restore", "-4", "0.0.0.0/0"), ("ip6tables-restore", "-6", "::/0")] {
        restore(netns, program);
        run(netns, "ip", &format!("{family} rule add fwmark 0x111/0xfff pref 32764 lookup 100"), "");
        run(netns, "ip", &format!("{family} route add local {any} dev lo table 100"), "");
    }
}

/// The rules of one family, by one of the restore programs.
pub fn restore(netns: &NetNs, program: &str) {
    let loopback = if program.starts_with("ip6") { "::1/128" } else { "127.0.0.1/32" };
    let rules = format!(
        "* mangle
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
* nat
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
"
    );
    run(netns, program, "--noflush", &rules);
}
