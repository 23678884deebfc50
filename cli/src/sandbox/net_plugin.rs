//! The first CNI plugin of the sandbox's conflist. The sandbox has already connected the pod, so
//! the plugin only reports the existing interface, and cnitool can add a pod repeatedly.

use std::io::Read;
use std::net::IpAddr;
use std::process::ExitCode;

use netns::NetNs;
use serde_json::{Value, json};

use crate::output::{exit_code, print};

/// The name of the plugin; in the CNI folder, it is a link to this program.
pub(crate) const NET_PLUGIN: &str = "underpass-sandbox-net";

/// Runs as the CNI plugin.
pub(crate) fn run() -> ExitCode {
    let mut input = String::new();
    let _ = std::io::stdin().read_to_string(&mut input); // missing input is reported below
    let config: Value = serde_json::from_str(&input).unwrap_or_default();
    let version = config["cniVersion"].as_str().filter(|v| !v.is_empty());
    let version = version.unwrap_or(cni_spec::IMPLIED_VERSION);
    match std::env::var("CNI_COMMAND").as_deref() {
        Ok("ADD") => {
            let interface = interface();
            print(match &interface {
                Ok((mac, addresses)) => result(version, mac, addresses),
                Err(e) => {
                    let reason = format!("{e:#}");
                    json!({ "cniVersion": version, "code": 100, "msg": reason, "details": "" })
                }
            });
            exit_code(interface.is_ok())
        }
        Ok("VERSION") => {
            print(cni_spec::version_reply(version));
            ExitCode::SUCCESS
        }
        // CHECK and DEL do nothing: the sandbox owns the interface.
        _ => ExitCode::SUCCESS,
    }
}

fn result(version: &str, mac: &str, addresses: &[IpAddr]) -> Value {
    let with_length = |a: &IpAddr| format!("{a}/{}", if a.is_ipv4() { 32 } else { 128 });
    if ["0.1.0", "0.2.0"].contains(&version) {
        let mut result = json!({ "cniVersion": version, "dns": {} });
        for a in addresses {
            let family = if a.is_ipv4() { "ip4" } else { "ip6" };
            result[family] = json!({ "ip": with_length(a) });
        }
        return result;
    }
    let netns = std::env::var("CNI_NETNS").unwrap_or_default();
    let ips = addresses.iter().map(|a| {
        let mut ip = json!({ "address": with_length(a), "interface": 0 });
        if ["0.3.0", "0.3.1", "0.4.0"].contains(&version) {
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
    let interfaces = netns.run(nix::ifaddrs::getifaddrs)??;
    let eth0 = interfaces.filter(|i| i.interface_name == "eth0");
    for address in eth0.filter_map(|i| i.address) {
        if let Some(link) = address.as_link_addr().and_then(|l| l.addr()) {
            mac = link.map(|b| format!("{b:02x}")).join(":");
        }
        addresses.extend(address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())));
        let v6 = address.as_sockaddr_in6().map(|a| a.ip());
        let v6 = v6.filter(|a| !a.is_unicast_link_local());
        addresses.extend(v6.map(IpAddr::V6));
    }
    anyhow::ensure!(
        !addresses.is_empty(),
        "the pod has no eth0 with an address; it does not belong to the sandbox"
    );
    Ok((mac, addresses))
}
