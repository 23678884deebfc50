//! Variants of the nodes, which environment variables choose, so that every test can run on each.

use std::path::Path;

/// The mode of kube-proxy: `nftables` (the default), `iptables` or `ipvs`.
const KUBE_PROXY_MODE: &str = "UNDERPASS_KUBE_PROXY_MODE";

/// How kube-proxy implements services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KubeProxyMode {
    /// Its own tables of nf_tables.
    Nftables,
    /// The program `iptables`.
    Iptables,
    /// The kernel's virtual servers, with iptables and ipset.
    Ipvs,
}

impl KubeProxyMode {
    /// The mode for the clusters of this process.
    ///
    /// # Panics
    /// When the variable has another value.
    pub(super) fn chosen() -> Self {
        match std::env::var(KUBE_PROXY_MODE).as_deref() {
            Err(_) | Ok("" | "nftables") => Self::Nftables,
            Ok("iptables") => Self::Iptables,
            Ok("ipvs") => Self::Ipvs,
            Ok(mode) => panic!("{KUBE_PROXY_MODE}={mode}: expected nftables, iptables or ipvs"),
        }
    }

    /// Its name in kube-proxy's configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }

    /// What this machine lacks for it.
    pub(super) fn missing(self) -> Option<String> {
        let lacks = |path: &str| !Path::new(path).exists();
        if self == Self::Ipvs && lacks("/proc/net/ip_vs") {
            return Some("the kernel has no IPVS (CONFIG_IP_VS, module ip_vs)".to_owned());
        }
        let programs: &[&str] = match self {
            Self::Nftables => &[],
            Self::Iptables => &["iptables"],
            Self::Ipvs => &["iptables", "ipset"],
        };
        let program = programs.iter().find(|p| lacks(&format!("/usr/sbin/{p}")))?;
        Some(format!("{program} is missing"))
    }
}
