//! `PROXY_CONFIG` and the mesh configuration mounted by Istio's charts: the fields that apply to a
//! node proxy.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// Path at which Istio's charts mount the mesh configuration.
pub(super) const MESH_CONFIG: &str = "./etc/istio/config/mesh";

/// The supported subset of Istio's ProxyConfig. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    pub(crate) discovery_address: Option<String>,
    pub proxy_admin_port: Option<u16>,
    pub stats_port: Option<u16>,
    pub concurrency: Option<usize>,
    pub(crate) proxy_metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: ProxyConfig,
}

/// Reads `PROXY_CONFIG`, with defaults from the mesh configuration.
///
/// # Errors
/// If one of the two is malformed; says which and where.
pub(super) fn read(text: Option<&str>, mesh_config: &Path) -> Result<ProxyConfig, String> {
    let own: ProxyConfig = match text.filter(|t| !t.trim().is_empty()) {
        Some(text) => serde_saphyr::from_str(text).map_err(|e| format!("PROXY_CONFIG: {e}"))?,
        None => ProxyConfig::default(),
    };
    let default = match std::fs::read_to_string(mesh_config) {
        Ok(text) if text.trim().is_empty() => ProxyConfig::default(),
        Ok(text) => {
            let mesh: Result<MeshConfig, _> = serde_saphyr::from_str(&text);
            mesh.map_err(|e| format!("{}: {e}", mesh_config.display()))?
                .default_config
        }
        Err(_) => ProxyConfig::default(), // the file is optional
    };
    let mut proxy_metadata = default.proxy_metadata;
    proxy_metadata.extend(own.proxy_metadata);
    Ok(ProxyConfig {
        discovery_address: own.discovery_address.or(default.discovery_address),
        proxy_admin_port: own.proxy_admin_port.or(default.proxy_admin_port),
        stats_port: own.stats_port.or(default.stats_port),
        concurrency: own.concurrency.or(default.concurrency),
        proxy_metadata,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_overrides_the_mesh_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mesh");
        let mesh = "defaultConfig:\n  discoveryAddress: istiod.a:15012\n  statsPort: 1\n  \
                    tracing: {}\n  proxyMetadata: { A: a, B: b }\ntrustDomain: x\n";
        std::fs::write(&file, mesh).unwrap();
        let read_with = |text| read(text, &file);
        assert_eq!(
            read_with(None).unwrap().discovery_address.as_deref(),
            Some("istiod.a:15012")
        );
        let own =
            "discoveryAddress: istiod.b:15012\nproxyAdminPort: 15001\nproxyMetadata: { B: c }";
        let config = read_with(Some(own)).unwrap();
        assert_eq!(config.discovery_address.as_deref(), Some("istiod.b:15012"));
        assert_eq!(
            (config.proxy_admin_port, config.stats_port),
            (Some(15001), Some(1))
        );
        assert_eq!(config.proxy_metadata["B"], "c");
        assert!(
            read_with(Some("statsPort: many"))
                .unwrap_err()
                .starts_with("PROXY_CONFIG: ")
        );
        std::fs::write(&file, "defaultConfig: 3").unwrap();
        assert!(read_with(None).is_err());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read(None, &file).unwrap(), ProxyConfig::default());
    }
}
