//! Authorization policies for TCP.

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use crate::identity::DEFAULT_TRUST_DOMAIN;
use crate::text::Text;
use crate::trust_domains::TrustDomains;

/// An authorization policy. It matches if any rule matches; a rule matches if all its clauses
/// match; a clause matches if any of its matches does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Policy name.
    pub name: Text,
    /// Policy namespace; empty for a global policy.
    #[serde(default)]
    pub namespace: Text,
    /// The workloads that it applies to.
    pub scope: PolicyScope,
    /// What happens to matching connections.
    pub action: Action,
    /// `rules[rule][clause][match]`.
    #[serde(default)]
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Whether the policy is only logged, not enforced.
    #[serde(default)]
    pub dry_run: bool,
}

/// The workloads that a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyScope {
    /// All workloads.
    Global,
    /// The workloads of its namespace.
    Namespace,
    /// The workloads that list it in `authorizationPolicies`.
    WorkloadSelector,
}

impl PolicyScope {
    /// The widest scope that a policy of this namespace can have: only those of the root namespace
    /// apply to other namespaces.
    pub fn widest_of(namespace: &str) -> Self {
        if namespace.is_empty() || namespace == istio::ROOT_NAMESPACE {
            Self::Global
        } else {
            Self::Namespace
        }
    }
}

/// What happens to matching connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Allows matching connections. If allow policies exist, all other connections are denied.
    Allow,
    /// Denies matching connections.
    Deny,
}

/// Properties of a connection. Each non-empty field must match, by any of its values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Match {
    /// Namespace of the client's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    /// Must not match any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// Namespace and service account of the client's identity, in any trust domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccount>,
    /// Must not match any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccount>,
    /// The client's principal: its identity without `spiffe://`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    /// Must not match any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// The client's address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    /// Must not match any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// The destination address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    /// Must not match any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    /// The destination port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    /// Must not match any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
    /// Parts that this version does not understand: the name of a field of this type that has such
    /// a value, or a description of anything else. Whether they match is in doubt: a deny policy
    /// then denies, an allow policy does not allow.
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    pub not_understood: Vec<Text>,
}

/// Names of the fields of [`Match`], for [`Match::not_understood`].
pub mod field {
    /// [`Match::namespaces`](super::Match::namespaces)
    pub const NAMESPACES: [&str; 2] = ["namespaces", "not_namespaces"];
    /// [`Match::principals`](super::Match::principals)
    pub const PRINCIPALS: [&str; 2] = ["principals", "not_principals"];
    /// [`Match::source_ips`](super::Match::source_ips)
    pub const SOURCE_IPS: [&str; 2] = ["source_ips", "not_source_ips"];
    /// [`Match::destination_ips`](super::Match::destination_ips)
    pub const DESTINATION_IPS: [&str; 2] = ["destination_ips", "not_destination_ips"];
    /// [`Match::destination_ports`](super::Match::destination_ports)
    pub const DESTINATION_PORTS: [&str; 2] = ["destination_ports", "not_destination_ports"];
    /// [`Match::service_accounts`](super::Match::service_accounts)
    pub const SERVICE_ACCOUNTS: [&str; 2] = ["service_accounts", "not_service_accounts"];

    pub(crate) const ALL: [[&str; 2]; 6] = [
        NAMESPACES,
        PRINCIPALS,
        SOURCE_IPS,
        DESTINATION_IPS,
        DESTINATION_PORTS,
        SERVICE_ACCOUNTS,
    ];
}

impl Match {
    /// A match of which nothing is understood but this description.
    pub fn in_doubt(what: impl Into<Text>) -> Self {
        Self {
            not_understood: vec![what.into()],
            ..Self::default()
        }
    }
}

/// A service account in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub service_account: Text,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringMatch {
    /// The whole text.
    Exact(Text),
    /// A prefix.
    Prefix(Text),
    /// A suffix.
    Suffix(Text),
    /// Any non-empty text. Serialized as `{"Presence": null}`, because `istioctl` expects an
    /// object.
    #[serde(serialize_with = "serialize_nothing")]
    Presence,
}

fn serialize_nothing<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_unit()
}

impl StringMatch {
    /// Whether a text matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(t) => *t == *text,
            Self::Prefix(t) => text.starts_with(t.as_str()),
            Self::Suffix(t) => text.ends_with(t.as_str()),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl Policy {
    /// A stand-in for a policy of which only the resource name, `namespace/name`, is known. It
    /// denies every connection to the workloads of its namespace (to all workloads, if that is the
    /// root namespace) and to those that list it.
    pub fn placeholder(key: &str) -> Self {
        let (namespace, name) = key.rsplit_once('/').unwrap_or(("", key));
        Self {
            name: name.into(),
            namespace: namespace.into(),
            scope: PolicyScope::widest_of(namespace),
            action: Action::Deny,
            rules: vec![vec![vec![Match::in_doubt("the whole policy")]]],
            dry_run: false,
        }
    }

    /// Why a principal of the policy can never match, if there is one. `own` is the trust domain of
    /// the workloads, if it is known, and `domains` its names.
    pub fn impossible_principal(
        &self,
        domains: &TrustDomains,
        own: Option<&str>,
    ) -> Option<String> {
        let problem = |text: &str, is_exact: bool| {
            if text.starts_with("spiffe://") {
                return Some("begins with spiffe://, unlike principals in policies".to_owned());
            }
            let parts: Vec<&str> = text.split('/').collect();
            match parts[..] {
                _ if !is_exact => None,
                [domain, "ns", namespace, "sa", account]
                    if ![domain, namespace, account].contains(&"") =>
                {
                    let own = own?;
                    let is_own = domain == DEFAULT_TRUST_DOMAIN || domains.same(domain, own);
                    (!is_own).then(|| format!("is not of the trust domain {own} or an alias of it"))
                }
                _ => Some("is not TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT".to_owned()),
            }
        };
        let rules = self.rules.iter().enumerate();
        let principals = rules.flat_map(|(index, rule)| {
            let matches = rule.iter().flatten();
            matches.flat_map(move |m| m.principals.iter().map(move |p| (index + 1, p)))
        });
        principals.into_iter().find_map(|(rule, principal)| {
            let (text, why) = match principal {
                StringMatch::Exact(text) => (text, problem(text, true)?),
                StringMatch::Prefix(text) => (text, problem(text, false)?),
                StringMatch::Suffix(_) | StringMatch::Presence => return None,
            };
            Some(format!(
                "rule {rule}: principal {text:?} can never match: it {why}"
            ))
        })
    }

    /// `namespace/name`, as used in references and reasons.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
