//! Redirection that others install, by the programs that they run.

#![allow(clippy::disallowed_types)] // these programs are the point

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use netns::NetNs;

fn run(netns: &NetNs, program: &str, args: &str, input: &str) {
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

/// What istio-cni installs for DNS, besides [`install_istio_rules`].
pub fn install_istio_dns_rules(netns: &NetNs) {
    for (program, loopback) in [("iptables-restore", "127.0.0.1/32"), ("ip6tables-restore", "::1/128")] {
        let rules = format!(
            "* nat
-I ISTIO_OUTPUT 1 ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-port 15053
-I ISTIO_OUTPUT 2 ! -d {loopback} -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
COMMIT
* raw
-N ISTIO_OUTPUT
-N ISTIO_PRERT
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
COMMIT
"
        );
        run(netns, program, "--noflush", &rules);
    }
}

/// Tproxy rules that bring the DNS of a pod to port 15053, in a pod whose TCP the `routed` capture has already.
pub fn install_routed_dns_rules(netns: &NetNs, own: &[IpAddr]) {
    let list = |v6: bool| {
        let own: Vec<String> = own.iter().filter(|ip| ip.is_ipv6() == v6).map(ToString::to_string).collect();
        own.join(", ")
    };
    let rules = format!(
        "table inet dns {{
    chain capture {{
        type filter hook prerouting priority -140; policy accept;
        meta mark & 0xfff == 0x539 accept
        ip daddr {{ 127.0.0.0/8, {} }} accept
        ip6 daddr {{ ::1, {} }} accept
        iifname lo meta l4proto udp udp dport 53 tproxy to :15053 accept
        iifname lo meta l4proto tcp tcp dport 53 tcp flags & (fin | syn | rst | ack) == syn tproxy to :15053 accept
    }}
}}
",
        list(false),
        list(true)
    );
    run(netns, "nft", "-f -", &rules);
    for family in ["-4", "-6"] {
        run(netns, "ip", &format!("{family} rule add iif lo ipproto udp dport 53 pref 32765 lookup 100"), "");
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
