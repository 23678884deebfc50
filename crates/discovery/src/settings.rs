//! Options for the control plane and for certificates; the environment variables have Istio's
//! names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::discovery::Node;
use api::grpc::{AsciiMetadataKey, AsciiMetadataValue};
use identity::TlsPolicy;
use mesh::TrustDomains;
use rustls::pki_types::ServerName;

use crate::node::{LocalPod, node};
use crate::proxy_config::{self, ProxyConfig};
use crate::roots::RootSource;
use crate::server::{Server, ServerAddress};
use crate::token::Token;

const IN_CLUSTER: &str = "https://istiod.istio-system.svc:15012";
const OUTSIDE: &str = "https://localhost:15012";

/// An option has an invalid value.
#[derive(Debug, thiserror::Error)]
#[error(
    "{code}: {0}. Next step: {next}",
    code = error_code::control::SETTING,
    next = error_code::control::SETTING.next_step
)]
pub struct SettingError(pub(crate) String);

/// Command line options and environment variables.
#[allow(rustdoc::bare_urls)] // they are shown by --help, as they stand
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address of the discovery server. By default discoveryAddress of PROXY_CONFIG; without
    /// it, https://istiod.istio-system.svc:15012 within a cluster and https://localhost:15012
    /// elsewhere. Must not be set together with a mesh file.
    #[arg(long, env = "XDS_ADDRESS")]
    xds_address: Option<String>,
    /// Address of the certificate authority, with the same default as XDS_ADDRESS. Empty, or
    /// by default with a mesh file: use the local authority in --ca-dir.
    #[arg(long, env = "CA_ADDRESS")]
    ca_address: Option<String>,
    /// Root certificates to verify the server at XDS_ADDRESS: a PEM file, SYSTEM, or PEM text.
    #[arg(
        long,
        env = "XDS_ROOT_CA",
        default_value = "./var/run/secrets/istio/root-cert.pem",
        hide_env_values = true
    )]
    xds_root_ca: String,
    /// Root certificates to verify the server at CA_ADDRESS: a PEM file, SYSTEM, or PEM text.
    #[arg(
        long,
        env = "CA_ROOT_CA",
        default_value = "./var/run/secrets/istio/root-cert.pem",
        hide_env_values = true
    )]
    ca_root_ca: String,
    /// Name expected in the certificate of the server at XDS_ADDRESS; by default its host.
    #[arg(long, env = "ALT_XDS_HOSTNAME")]
    alt_xds_hostname: Option<String>,
    /// Name expected in the certificate of the server at CA_ADDRESS; by default its host.
    #[arg(long, env = "ALT_CA_HOSTNAME")]
    alt_ca_hostname: Option<String>,
    /// Token that authenticates this proxy to the control plane: a file, which is read for every
    /// request, or the token itself. By default ./var/run/secrets/tokens/istio-token, if it exists.
    #[arg(long, env = "AUTH_TOKEN", hide_env_values = true)]
    auth_token: Option<String>,
    /// Request workloads and services on demand, when a pod first connects to them.
    #[arg(long, env = "XDS_ON_DEMAND", default_value = "false", action = clap::ArgAction::Set)]
    pub xds_on_demand: bool,
    /// Maximum age of the mesh state while the control plane is unreachable, such as 30m. New
    /// connections are refused when it is exceeded. By default there is no limit.
    #[arg(long, env = "UNDERPASS_MAX_STATE_AGE", value_parser = process::parse_duration)]
    pub max_state_age: Option<Duration>,
    /// Requested validity of certificates; they are renewed at half of their actual validity.
    #[arg(long, env = "SECRET_TTL", default_value = "24h")]
    secret_ttl: String,
    /// Istio's ProxyConfig in YAML; supported fields are discoveryAddress, proxyAdminPort,
    /// statsPort, concurrency and proxyMetadata.
    #[arg(long, env = "PROXY_CONFIG", hide_env_values = true)]
    proxy_config: Option<String>,
    /// Trust domain of pods that are not in the mesh state yet.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Comma-separated aliases of the trust domain; identities in them are accepted as its own.
    #[arg(long, env = "UNDERPASS_TRUST_DOMAIN_ALIASES", value_delimiter = ',')]
    trust_domain_aliases: Vec<String>,
    /// Comma-separated trust domains that count as the proxy's own, as in ztunnel.
    #[arg(long, env = "TRUST_DOMAINS", value_delimiter = ',')]
    own_trust_domains: Vec<String>,
    /// IP address of the proxy's own pod.
    #[arg(long, env = "INSTANCE_IP", default_value = "")]
    instance_ip: String,
    /// Name of the proxy's own pod.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pod_name: String,
    /// Namespace of the proxy's own pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pod_namespace: String,
    /// Service account of the proxy's own pod. Used in logs only; the token authenticates the
    /// proxy.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "")]
    pub service_account: String,
    /// Set to `pqc` to allow only post-quantum key exchange (X25519MLKEM768).
    #[arg(long, env = "COMPLIANCE_POLICY", default_value = "")]
    compliance_policy: String,
    /// Also allow TLS 1.2.
    #[arg(long, env = "TLS12_ENABLED", default_value = "false", action = clap::ArgAction::Set)]
    tls12: bool,
    /// Certificate revocation lists in PEM or DER: a file or a directory, reloaded when it changes.
    /// By default none.
    #[arg(long, env = "CRL_PATH")]
    pub crl_path: Option<PathBuf>,
}

impl Options {
    /// The names of the own trust domain.
    pub fn trust_domains(&self) -> Arc<TrustDomains> {
        let all = self
            .trust_domain_aliases
            .iter()
            .chain(&self.own_trust_domains);
        let others: Vec<String> = all.map(|name| name.trim().to_owned()).collect();
        let others: Vec<String> = others.into_iter().filter(|name| !name.is_empty()).collect();
        Arc::new(TrustDomains::new(&self.trust_domain, &others))
    }
}

/// Validated settings.
#[derive(Debug)]
pub struct Settings {
    /// Discovery server; `None` with a mesh file.
    pub xds: Option<Server>,
    /// Certificate authority; `None` for the local one.
    pub ca: Option<Server>,
    /// The description of this proxy for the discovery server.
    pub node: Node,
    /// ID of the cluster of this node.
    pub cluster_id: String,
    /// Requested validity of certificates.
    pub secret_ttl: Duration,
    /// TLS parameters for peers and the control plane.
    pub tls: TlsPolicy,
    /// The supported part of `PROXY_CONFIG`.
    pub proxy_config: ProxyConfig,
}

/// Other options and the environment, as far as they affect [`Settings`].
pub struct SettingsContext<'a> {
    /// Whether the mesh comes from a file.
    pub has_mesh_file: bool,
    /// Whether the proxy answers DNS queries.
    pub answers_dns: bool,
    /// Name of this node.
    pub node_name: &'a str,
    /// ID of the cluster of this node.
    pub cluster_id: &'a str,
    /// All environment variables.
    pub variables: Vec<(String, String)>,
}

impl Options {
    /// Validates all options.
    pub fn settings(&self, context: &SettingsContext<'_>) -> Result<Settings, SettingError> {
        let tls = self.tls()?;
        let proxy_config = proxy_config::read(
            self.proxy_config.as_deref(),
            Path::new(proxy_config::MESH_CONFIG),
        );
        let proxy_config = proxy_config.map_err(SettingError)?;
        let default = match (context.has_mesh_file, &proxy_config.discovery_address) {
            (true, _) => "",
            (false, Some(address)) => address,
            (false, None) if context.variable("KUBERNETES_SERVICE_HOST").is_some() => IN_CLUSTER,
            (false, None) => OUTSIDE,
        };
        let xds = self.xds_address.as_deref().unwrap_or(default);
        let ca = self.ca_address.as_deref().unwrap_or(default);
        match (xds.is_empty(), context.has_mesh_file) {
            (true, false) => {
                return Err(SettingError(
                    "no source for the mesh: set XDS_ADDRESS or a mesh file".to_owned(),
                ));
            }
            (false, true) => {
                let reason = format!("XDS_ADDRESS ({xds}) and a mesh file exclude each other");
                return Err(SettingError(reason));
            }
            _ => {}
        }
        if self.xds_on_demand && context.answers_dns {
            let reason = "XDS_ON_DEMAND requires ISTIO_META_DNS_CAPTURE=false: answering DNS \
                          queries requires the complete mesh";
            return Err(SettingError(reason.to_owned()));
        }
        let pod = LocalPod {
            pod_name: &self.pod_name,
            pod_namespace: &self.pod_namespace,
            instance_ip: &self.instance_ip,
            node: context.node_name,
        };
        let server = |variable: &str, text: &str, alternative: &Option<String>, roots: &str| {
            let address =
                ServerAddress::parse(text).map_err(|e| SettingError(format!("{variable}: {e}")))?;
            let name = alternative
                .as_deref()
                .filter(|n| !n.is_empty())
                .unwrap_or(&address.host)
                .to_owned();
            let invalid =
                |_| SettingError(format!("{name:?} is neither a DNS name nor an IP address"));
            Ok::<_, SettingError>(Server {
                name: ServerName::try_from(name.clone()).map_err(invalid)?,
                address,
                roots: RootSource::from_setting(roots),
                token: Token::from_setting(self.auth_token.as_deref()),
                headers: context.headers(variable.split('_').next().unwrap_or_default())?,
                tls: tls.clone(),
                known: Default::default(),
            })
        };
        let is_set = |text: &&str| !text.is_empty();
        let xds = Some(xds).filter(is_set);
        let ca = Some(ca).filter(is_set);
        Ok(Settings {
            xds: xds
                .map(|t| server("XDS_ADDRESS", t, &self.alt_xds_hostname, &self.xds_root_ca))
                .transpose()?,
            ca: ca
                .map(|t| server("CA_ADDRESS", t, &self.alt_ca_hostname, &self.ca_root_ca))
                .transpose()?,
            node: node(
                &pod,
                context.variables.iter().cloned(),
                &proxy_config.proxy_metadata,
            )
            .map_err(SettingError)?,
            cluster_id: context.cluster().to_owned(),
            secret_ttl: process::parse_duration(&self.secret_ttl)
                .map_err(|e| SettingError(format!("SECRET_TTL: {e}")))?,
            tls,
            proxy_config,
        })
    }

    fn tls(&self) -> Result<TlsPolicy, SettingError> {
        let only_post_quantum = match self.compliance_policy.as_str() {
            "" => false,
            "pqc" => true,
            other => {
                return Err(SettingError(format!(
                    "invalid COMPLIANCE_POLICY {other:?}: expected pqc or nothing"
                )));
            }
        };
        if only_post_quantum && self.tls12 {
            let reason = "COMPLIANCE_POLICY=pqc and TLS12_ENABLED exclude each other: TLS 1.2 has \
                          no post-quantum key exchange";
            return Err(SettingError(reason.to_owned()));
        }
        Ok(TlsPolicy::new(only_post_quantum, self.tls12))
    }
}

impl SettingsContext<'_> {
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The ID of the cluster of this node.
    fn cluster(&self) -> &str {
        self.variable("ISTIO_META_CLUSTER_ID")
            .unwrap_or(self.cluster_id)
    }

    /// Headers of every request: the cluster, and those from variables such as
    /// `XDS_HEADER_x-tenant`.
    fn headers(
        &self,
        server: &str,
    ) -> Result<Vec<(AsciiMetadataKey, AsciiMetadataValue)>, SettingError> {
        let prefix = format!("{server}_HEADER_");
        let own = std::iter::once(("clusterid", self.cluster(), "CLUSTER_ID"));
        let additional = self.variables.iter().filter_map(|(name, value)| {
            let header = name.strip_prefix(prefix.as_str())?;
            Some((header, value.as_str(), name.as_str()))
        });
        own.chain(additional)
            .map(|(header, value, variable)| {
                let key = AsciiMetadataKey::from_bytes(header.as_bytes());
                let key = key.map_err(|_| {
                    SettingError(format!("{variable}: invalid header name {header:?}"))
                })?;
                let value = AsciiMetadataValue::try_from(value);
                let value =
                    value.map_err(|_| SettingError(format!("{variable}: invalid header value")))?;
                Ok((key, value))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn settings(
        args: &[&str],
        variables: &[(&str, &str)],
        has_mesh_file: bool,
    ) -> Result<Settings, String> {
        let command = Command::try_parse_from(std::iter::once(&"x").chain(args)).unwrap();
        let variables = variables
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        let context = SettingsContext {
            has_mesh_file,
            answers_dns: true,
            node_name: "n1",
            cluster_id: "Kubernetes",
            variables,
        };
        command
            .options
            .settings(&context)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_have_the_defaults_of_istio() {
        let both = |s: Settings| {
            (
                s.xds.map(|x| x.address.to_string()),
                s.ca.map(|c| c.address.to_string()),
            )
        };
        let of = |args: &[&str], variables: &[(&str, &str)], file| {
            both(settings(args, variables, file).unwrap())
        };
        let url = |u: &str| Some(u.to_owned());
        let in_cluster = [("KUBERNETES_SERVICE_HOST", "10.96.0.1")];
        assert_eq!(of(&[], &[], false), (url(OUTSIDE), url(OUTSIDE)));
        assert_eq!(
            of(&[], &in_cluster, false),
            (url(IN_CLUSTER), url(IN_CLUSTER))
        );
        assert_eq!(
            of(&[], &in_cluster, true),
            (None, None),
            "a mesh file needs no control plane"
        );
        assert_eq!(
            of(&["--ca-address", "ca:1"], &[], true),
            (None, url("https://ca:1"))
        );
        assert_eq!(
            of(&["--xds-address", "x:1", "--ca-address", ""], &[], false),
            (url("https://x:1"), None)
        );
        let config = ["--proxy-config", "discoveryAddress: istiod.x:15012"];
        assert_eq!(
            of(&config, &in_cluster, false),
            (url("https://istiod.x:15012"), url("https://istiod.x:15012"))
        );
    }

    #[test]
    fn each_bad_value_is_an_error_with_a_code() {
        type Case = (
            &'static [&'static str],
            &'static [(&'static str, &'static str)],
            bool,
        );
        let cases: [Case; 13] = [
            (&["--xds-on-demand", "true"], &[], false),
            (&["--xds-address", ""], &[], false),
            (&["--xds-address", "x:1"], &[], true),
            (&["--xds-address", "http://x:1"], &[], false),
            (&["--ca-address", "x"], &[], false),
            (&["--alt-xds-hostname", "a b"], &[], false),
            (&["--secret-ttl", "soon"], &[], false),
            (&["--compliance-policy", "fips"], &[], false),
            (
                &["--compliance-policy", "pqc", "--tls12", "true"],
                &[],
                false,
            ),
            (&["--proxy-config", "["], &[], false),
            (&[], &[("XDS_HEADER_a b", "c")], false),
            (&[], &[("CA_HEADER_a", "\n")], false),
            (&[], &[("ISTIO_METAJSON_A", "{")], false),
        ];
        for (args, variables, file) in cases {
            let error = settings(args, variables, file).map(drop).unwrap_err();
            assert!(
                error.starts_with("UP-CONTROL-001: ") && error.contains("Next step: "),
                "{args:?}: {error}"
            );
        }
    }

    #[test]
    fn headers_have_the_cluster_and_additions_from_the_environment() {
        let variables = [
            ("ISTIO_META_CLUSTER_ID", "c1"),
            ("XDS_HEADER_x-tenant", "blue"),
            ("CA_HEADER_x-tenant", "red"),
        ];
        let settings = settings(&["--alt-ca-hostname", "ca.example"], &variables, false).unwrap();
        let headers = |s: &Server| -> Vec<(String, String)> {
            s.headers
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()))
                .collect()
        };
        let expected = |tenant: &str| {
            [("clusterid", "c1"), ("x-tenant", tenant)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .to_vec()
        };
        let (xds, ca) = (settings.xds.unwrap(), settings.ca.unwrap());
        assert_eq!(
            (headers(&xds), headers(&ca)),
            (expected("blue"), expected("red"))
        );
        assert_eq!(
            (xds.name.to_str(), ca.name.to_str()),
            ("localhost".into(), "ca.example".into())
        );
    }
}
