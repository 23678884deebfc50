//! The options of the control plane and of certificates, under the names that Istio gives their environment variables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::discovery::Node;
use rustls::pki_types::ServerName;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use super::node::{Own, node};
use super::proxy_config::{self, ProxyConfig};
use super::roots::RootSource;
use super::server::{Address, Server};
use super::token::Token;
use crate::identity::TlsPolicy;

const IN_CLUSTER: &str = "https://istiod.istio-system.svc:15012";
const OUTSIDE: &str = "https://localhost:15012";

/// An option that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {0}. Next step: {next}", code = error_code::control::SETTING, next = error_code::control::SETTING.next_step)]
pub(crate) struct SettingError(pub(crate) String);

/// What may be said on the command line and in the environment.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Where to ask for the mesh, such as https://istiod.istio-system.svc:15012. Nowhere, when it is empty or there is a
    /// mesh file.
    #[arg(long, env = "XDS_ADDRESS")]
    xds_address: Option<String>,
    /// Where to ask for certificates; by default where the mesh is asked for. An empty one means the local authority.
    #[arg(long, env = "CA_ADDRESS")]
    ca_address: Option<String>,
    /// Roots by which the server at XDS_ADDRESS is verified: a file, SYSTEM, or the certificates in PEM.
    #[arg(long, env = "XDS_ROOT_CA", default_value = "./var/run/secrets/istio/root-cert.pem", hide_env_values = true)]
    xds_root_ca: String,
    /// The same for CA_ADDRESS.
    #[arg(long, env = "CA_ROOT_CA", default_value = "./var/run/secrets/istio/root-cert.pem", hide_env_values = true)]
    ca_root_ca: String,
    /// The name in the certificate of the server at XDS_ADDRESS, where that is another than its host.
    #[arg(long, env = "ALT_XDS_HOSTNAME")]
    alt_xds_hostname: Option<String>,
    /// The same for CA_ADDRESS.
    #[arg(long, env = "ALT_CA_HOSTNAME")]
    alt_ca_hostname: Option<String>,
    /// The token by which the control plane knows this proxy: a file, read for every request, or the token itself. The
    /// default is ./var/run/secrets/tokens/istio-token, if it exists.
    #[arg(long, env = "AUTH_TOKEN", hide_env_values = true)]
    auth_token: Option<String>,
    /// Whether to ask for workloads and services one by one, when something connects to them.
    #[arg(long, env = "XDS_ON_DEMAND", default_value = "false", action = clap::ArgAction::Set)]
    pub(crate) xds_on_demand: bool,
    /// How old the mesh may become while the control plane is away, such as 30m; then new connections are refused until it is
    /// back. Without this, the mesh that was read last stays in force.
    #[arg(long, env = "UNDERPASS_MAX_STATE_AGE", value_parser = crate::args::duration)]
    pub(crate) max_state_age: Option<Duration>,
    /// How long certificates should be valid; they are renewed at half of what they are.
    #[arg(long, env = "SECRET_TTL", default_value = "24h")]
    secret_ttl: String,
    /// Istio's ProxyConfig in YAML: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata.
    #[arg(long, env = "PROXY_CONFIG")]
    proxy_config: Option<String>,
    /// The trust domain of pods of which the mesh has not said another.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// Other names of that trust domain, whose identities are accepted as its own.
    #[arg(long, env = "UNDERPASS_TRUST_DOMAIN_ALIASES", value_delimiter = ',')]
    pub(crate) trust_domain_aliases: Vec<String>,
    /// Address of the pod that this proxy runs in.
    #[arg(long, env = "INSTANCE_IP", default_value = "")]
    instance_ip: String,
    /// Name of that pod.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pod_name: String,
    /// Namespace of that pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pod_namespace: String,
    /// Its service account. Only told in the log: the token says it to the control plane.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "")]
    pub(crate) service_account: String,
    /// `pqc` leaves only the key exchange that a quantum computer does not break.
    #[arg(long, env = "COMPLIANCE_POLICY", default_value = "")]
    compliance_policy: String,
    /// Whether to speak TLS 1.2, too.
    #[arg(long, env = "TLS12_ENABLED", default_value = "false", action = clap::ArgAction::Set)]
    tls12: bool,
    /// Lists of revoked certificates, in PEM or DER: a file or a folder, read again whenever it changes.
    #[arg(long, env = "CRL_PATH")]
    pub(crate) crl_path: Option<PathBuf>,
}

/// What the options come to.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the mesh comes from; `None` for the mesh file.
    pub(crate) xds: Option<Server>,
    /// Where certificates come from; `None` for the local authority.
    pub(crate) ca: Option<Server>,
    pub(crate) node: Node,
    pub(crate) secret_ttl: Duration,
    pub(crate) tls: TlsPolicy,
    pub(crate) proxy_config: ProxyConfig,
}

/// What other options say that matters here.
pub(crate) struct Context<'a> {
    pub(crate) has_mesh_file: bool,
    /// Whether names are answered.
    pub(crate) answers_dns: bool,
    pub(crate) node_name: &'a str,
    pub(crate) cluster_id: &'a str,
    /// The whole environment.
    pub(crate) variables: Vec<(String, String)>,
}

impl Options {
    /// Looks at everything before anything begins.
    pub(crate) fn settings(&self, context: &Context<'_>) -> Result<Settings, SettingError> {
        let tls = self.tls()?;
        let proxy_config = proxy_config::read(self.proxy_config.as_deref(), Path::new(proxy_config::MESH_CONFIG));
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
            (true, false) => return Err(SettingError("XDS_ADDRESS is empty and there is no mesh file".to_owned())),
            (false, true) => {
                let both = format!("the mesh cannot come from a mesh file and from XDS_ADDRESS ({xds}), too");
                return Err(SettingError(both));
            }
            _ => {}
        }
        if self.xds_on_demand && context.answers_dns {
            let why = "XDS_ON_DEMAND needs ISTIO_META_DNS_CAPTURE=false: names can only be answered from a whole mesh";
            return Err(SettingError(why.to_owned()));
        }
        let own = Own {
            pod_name: &self.pod_name,
            pod_namespace: &self.pod_namespace,
            instance_ip: &self.instance_ip,
            node: context.node_name,
        };
        let server = |variable: &str, text: &str, alternative: &Option<String>, roots: &str| {
            let address = Address::parse(text).map_err(|e| SettingError(format!("{variable}: {e}")))?;
            let name = alternative.as_deref().filter(|n| !n.is_empty()).unwrap_or(&address.host).to_owned();
            let wrong = |_| SettingError(format!("{name:?} is no name that a certificate could have"));
            Ok::<_, SettingError>(Server {
                name: ServerName::try_from(name.clone()).map_err(wrong)?,
                address,
                roots: RootSource::from_setting(roots),
                token: Token::from_setting(self.auth_token.as_deref()),
                headers: context.headers(variable.split('_').next().unwrap_or_default())?,
                tls: tls.clone(),
            })
        };
        let used = |text: &&str| !text.is_empty();
        let xds = Some(xds).filter(used);
        let ca = Some(ca).filter(used);
        Ok(Settings {
            xds: xds.map(|t| server("XDS_ADDRESS", t, &self.alt_xds_hostname, &self.xds_root_ca)).transpose()?,
            ca: ca.map(|t| server("CA_ADDRESS", t, &self.alt_ca_hostname, &self.ca_root_ca)).transpose()?,
            node: node(&own, context.variables.iter().cloned(), &proxy_config.proxy_metadata).map_err(SettingError)?,
            secret_ttl: crate::args::duration(&self.secret_ttl)
                .map_err(|e| SettingError(format!("SECRET_TTL: {e}")))?,
            tls,
            proxy_config,
        })
    }

    fn tls(&self) -> Result<TlsPolicy, SettingError> {
        let only_post_quantum = match self.compliance_policy.as_str() {
            "" => false,
            "pqc" => true,
            other => return Err(SettingError(format!("COMPLIANCE_POLICY is {other:?}; there is only \"pqc\""))),
        };
        if only_post_quantum && self.tls12 {
            let why = "COMPLIANCE_POLICY=pqc and TLS12_ENABLED contradict each other: TLS 1.2 has no such key exchange";
            return Err(SettingError(why.to_owned()));
        }
        Ok(TlsPolicy::new(only_post_quantum, self.tls12))
    }
}

impl Context<'_> {
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// What every request says: the cluster, and variables such as `XDS_HEADER_x-tenant`.
    fn headers(&self, server: &str) -> Result<Vec<(AsciiMetadataKey, AsciiMetadataValue)>, SettingError> {
        let prefix = format!("{server}_HEADER_");
        let cluster = self.variable("ISTIO_META_CLUSTER_ID").unwrap_or(self.cluster_id);
        let own = std::iter::once(("clusterid", cluster, "CLUSTER_ID"));
        let more = self.variables.iter().filter_map(|(name, value)| {
            let header = name.strip_prefix(prefix.as_str())?;
            Some((header, value.as_str(), name.as_str()))
        });
        own.chain(more)
            .map(|(header, value, variable)| {
                let key = AsciiMetadataKey::from_bytes(header.as_bytes());
                let key = key.map_err(|_| SettingError(format!("{variable}: {header:?} is no name of a header")))?;
                let value = AsciiMetadataValue::try_from(value);
                Ok((key, value.map_err(|_| SettingError(format!("{variable}: its value cannot stand in a header")))?))
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

    fn settings(args: &[&str], variables: &[(&str, &str)], has_mesh_file: bool) -> Result<Settings, String> {
        let command = Command::try_parse_from(std::iter::once(&"x").chain(args)).unwrap();
        let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let context =
            Context { has_mesh_file, answers_dns: true, node_name: "n1", cluster_id: "Kubernetes", variables };
        command.options.settings(&context).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_have_the_defaults_that_istio_gives_them() {
        let both = |s: Settings| (s.xds.map(|x| x.address.to_string()), s.ca.map(|c| c.address.to_string()));
        let of = |args: &[&str], variables: &[(&str, &str)], file| both(settings(args, variables, file).unwrap());
        let url = |u: &str| Some(u.to_owned());
        let in_cluster = [("KUBERNETES_SERVICE_HOST", "10.96.0.1")];
        assert_eq!(of(&[], &[], false), (url(OUTSIDE), url(OUTSIDE)));
        assert_eq!(of(&[], &in_cluster, false), (url(IN_CLUSTER), url(IN_CLUSTER)));
        assert_eq!(of(&[], &in_cluster, true), (None, None), "a mesh file needs no control plane");
        assert_eq!(of(&["--ca-address", "ca:1"], &[], true), (None, url("https://ca:1")));
        assert_eq!(of(&["--xds-address", "x:1", "--ca-address", ""], &[], false), (url("https://x:1"), None));
        let config = ["--proxy-config", "discoveryAddress: istiod.x:15012"];
        assert_eq!(of(&config, &in_cluster, false), (url("https://istiod.x:15012"), url("https://istiod.x:15012")));
    }

    #[test]
    fn each_bad_value_is_an_error_with_a_code() {
        type Case = (&'static [&'static str], &'static [(&'static str, &'static str)], bool);
        let cases: [Case; 13] = [
            (&["--xds-on-demand", "true"], &[], false),
            (&["--xds-address", ""], &[], false),
            (&["--xds-address", "x:1"], &[], true),
            (&["--xds-address", "http://x:1"], &[], false),
            (&["--ca-address", "x"], &[], false),
            (&["--alt-xds-hostname", "a b"], &[], false),
            (&["--secret-ttl", "soon"], &[], false),
            (&["--compliance-policy", "fips"], &[], false),
            (&["--compliance-policy", "pqc", "--tls12", "true"], &[], false),
            (&["--proxy-config", "["], &[], false),
            (&[], &[("XDS_HEADER_a b", "c")], false),
            (&[], &[("CA_HEADER_a", "\n")], false),
            (&[], &[("ISTIO_METAJSON_A", "{")], false),
        ];
        for (args, variables, file) in cases {
            let error = settings(args, variables, file).map(drop).unwrap_err();
            assert!(error.starts_with("UP-CONTROL-001: ") && error.contains("Next step: "), "{args:?}: {error}");
        }
    }

    #[test]
    fn every_request_says_the_cluster_and_what_the_environment_adds() {
        let variables =
            [("ISTIO_META_CLUSTER_ID", "c1"), ("XDS_HEADER_x-tenant", "blue"), ("CA_HEADER_x-tenant", "red")];
        let settings = settings(&["--alt-ca-hostname", "ca.example"], &variables, false).unwrap();
        let headers = |s: &Server| -> Vec<(String, String)> {
            s.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned())).collect()
        };
        let expected = |tenant: &str| {
            [("clusterid", "c1"), ("x-tenant", tenant)].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()
        };
        let (xds, ca) = (settings.xds.unwrap(), settings.ca.unwrap());
        assert_eq!((headers(&xds), headers(&ca)), (expected("blue"), expected("red")));
        assert_eq!((xds.name.to_str(), ca.name.to_str()), ("localhost".into(), "ca.example".into()));
    }
}
