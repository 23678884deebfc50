//! Redirection rules of istio-cni, installed with the programs that it runs.

#![allow(clippy::disallowed_types)] // these programs are under test

use std::io::Write;
use std::process::{Command, Stdio};

use netns::NetNs;

/// Runs a program inside a namespace; panics if it fails.
pub fn run(netns: &NetNs, program: &str, args: &str, input: &str) {
    let mut command = Command::new(program);
    command.args(args.split_whitespace()).stdin(Stdio::piped());
    let mut child = netns::process::in_netns(&mut command, netns)
        .unwrap()
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{program} {args}");
}

/// Installs istio-cni's rules in a pod, without DNS capture.
pub fn install_istio_rules(netns: &NetNs) {
    for (program, family, any) in [
        ("iptables-restore", "-4", "0.0.0.0/0"),
        ("ip6tables-restore", "-6", "::/0"),
    ] {
        restore(netns, program);
        run(
            netns,
            "ip",
            &format!("{family} rule add fwmark 0x111/0xfff pref 32764 lookup 100"),
            "",
        );
        run(
            netns,
            "ip",
            &format!("{family} route add local {any} dev lo table 100"),
            "",
        );
    }
}

/// The program with which istio-cni installs its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IstioBackend {
    /// iptables-nft.
    IptablesNft,
    /// iptables-legacy.
    IptablesLegacy,
    /// nft, in tables of its own.
    Nft,
}

/// Installs istio-cni's rules in a pod with one of its backends, without DNS capture.
pub fn install_istio_rules_with(netns: &NetNs, backend: IstioBackend) {
    for (family, any) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        match backend {
            IstioBackend::IptablesNft => restore(
                netns,
                if family == "-6" {
                    "ip6tables-nft-restore"
                } else {
                    "iptables-nft-restore"
                },
            ),
            IstioBackend::IptablesLegacy => {
                restore(
                    netns,
                    if family == "-6" {
                        "ip6tables-legacy-restore"
                    } else {
                        "iptables-legacy-restore"
                    },
                );
            }
            IstioBackend::Nft => {}
        }
        run(
            netns,
            "ip",
            &format!("{family} rule add fwmark 0x111/0xfff pref 32764 lookup 100"),
            "",
        );
        run(
            netns,
            "ip",
            &format!("{family} route add local {any} dev lo table 100"),
            "",
        );
    }
    if backend == IstioBackend::Nft {
        run(netns, "nft", "-f -", ISTIO_TABLES);
    }
}

const ISTIO_TABLES: &str = "
table inet istio-ambient-nat {
  chain prerouting { type nat hook prerouting priority -100; jump istio-prerouting
  }
  chain output { type nat hook output priority -100; jump istio-output
  }
  chain istio-prerouting {
    ip daddr != 127.0.0.1/32 tcp dport != 15008 mark and 0xfff != 0x539 counter redirect to :15006
    ip6 daddr != ::1/128 tcp dport != 15008 mark and 0xfff != 0x539 counter redirect to :15006
  }
  chain istio-output {
    meta l4proto tcp mark and 0xfff == 0x111 counter accept
    oifname lo ip daddr != 127.0.0.1/32 counter accept
    oifname lo ip6 daddr != ::1/128 counter accept
    meta l4proto tcp ip daddr != 127.0.0.1/32 mark and 0xfff != 0x539 counter redirect to :15001
    meta l4proto tcp ip6 daddr != ::1/128 mark and 0xfff != 0x539 counter redirect to :15001
  }
}
table inet istio-ambient-mangle {
  chain prerouting { type filter hook prerouting priority -150; jump istio-prerouting
  }
  chain output { type route hook output priority -150; jump istio-output
  }
  chain istio-prerouting { meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | \
                            0x111
  }
  chain istio-output { ct mark and 0xfff == 0x111 counter meta mark set ct mark
  }
}
";

/// Installs istio-cni's rules for DNS capture, in addition to [`install_istio_rules`].
pub fn install_istio_dns_rules(netns: &NetNs) {
    for (program, loopback) in [
        ("iptables-restore", "127.0.0.1/32"),
        ("ip6tables-restore", "::1/128"),
    ] {
        let rules = format!(
            "* nat
-I ISTIO_OUTPUT 1 ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT \
             --to-port 15053
-I ISTIO_OUTPUT 2 ! -d {loopback} -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT \
             --to-ports 15053
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

/// Installs the rules of one family with one of the restore programs.
pub fn restore(netns: &NetNs, program: &str) {
    let loopback = if program.starts_with("ip6") {
        "::1/128"
    } else {
        "127.0.0.1/32"
    };
    let rules = format!(
        "* mangle
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff \
         --ctmask 0xffffffff
COMMIT
* nat
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT \
         --to-ports 15006
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
"
    );
    run(netns, program, "--noflush", &rules);
}
