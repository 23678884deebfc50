//! The first plugin of the sandbox's conflist. The sandbox has wired the pod already, so it only tells what is there;
//! thus cnitool can add a pod of the sandbox again and again.

use std::io::Read;
use std::net::IpAddr;
use std::process::ExitCode;

use netns::NetNs;
use serde_json::{Value, json};

/// Its name in the CNI folder, where it is a link to this program.
pub(crate) const NET_PLUGIN: &str = "underpass-sandbox-net";

/// Runs as that plugin.
pub(crate) fn run() -> ExitCode {
    let mut input = String::new();
    let _ = std::io::stdin().read_to_string(&mut input); // what is missing is told below
    let config: Value = serde_json::from_str(&input).unwrap_or_default();
    let version = config["cniVersion"].as_str().unwrap_or("1.0.0");
    match std::env::var("CNI_COMMAND").as_deref() {
        Ok("ADD") => match interface() {
            Ok((mac, addresses)) => {
                println!("{}", result(version, &mac, &addresses));
                ExitCode::SUCCESS
            }
            Err(e) => {
                println!("{}", json!({ "cniVersion": version, "code": 100, "msg": format!("{e:#}"), "details": "" }));
                ExitCode::FAILURE
            }
        },
        Ok("VERSION") => {
            println!("{}", cni_spec::version_answer(version));
            ExitCode::SUCCESS
        }
        // CHECK and DEL: the wire belongs to the sandbox.
        _ => ExitCode::SUCCESS,
    }
}

fn result(version: &str, mac: &str, addresses: &[IpAddr]) -> Value {
    let netns = std::env::var("CNI_NETNS").unwrap_or_default();
    let ips = addresses.iter().map(|a| {
        let length = if a.is_ipv4() { 32 } else { 128 };
        let mut ip = json!({ "address": format!("{a}/{length}"), "interface": 0 });
        if version == "0.3.1" || version == "0.4.0" {
            ip["version"] = json!(if a.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    json!({
        "cniVersion": version,
        "interfaces": [{ "name": "eth0", "mac": mac, "sandbox": netns }],
        "ips": ips.collect::<Vec<_>>(),
        "dns": {},
    })
}

fn interface() -> anyhow::Result<(String, Vec<IpAddr>)> {
    let netns = NetNs::open(std::env::var("CNI_NETNS").unwrap_or_default())?;
    let (mut mac, mut addresses) = (String::new(), Vec::new());
    let found: Vec<_> = netns.run(nix::ifaddrs::getifaddrs)??.filter(|i| i.interface_name == "eth0").collect();
    for address in found.into_iter().filter_map(|i| i.address) {
        if let Some(link) = address.as_link_addr().and_then(|l| l.addr()) {
            mac = link.map(|b| format!("{b:02x}")).join(":");
        }
        addresses.extend(address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())));
        let v6 = address.as_sockaddr_in6().map(|a| a.ip()).filter(|a| !a.is_unicast_link_local());
        addresses.extend(v6.map(IpAddr::V6));
    }
    anyhow::ensure!(!addresses.is_empty(), "the pod has no eth0 with an address: it is no pod of the sandbox");
    Ok((mac, addresses))
}
