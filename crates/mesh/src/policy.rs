//! Authorization policies for TCP.

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use crate::text::Text;

/// An authorization policy. Rules are alternatives; the clauses of a rule must all hold; the matches of a clause are
/// alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Policy name.
    pub name: Text,
    /// Policy namespace; empty for a global one.
    #[serde(default)]
    pub namespace: Text,
    /// Which workloads it is about.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// `rules[rule][clause][match]`.
    #[serde(default)]
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Whether it is only logged what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// Which workloads a policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyScope {
    /// All.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those that name it in `authorizationPolicies`.
    WorkloadSelector,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// What matches may pass; what matches no such policy may not.
    Allow,
    /// What matches may not pass.
    Deny,
}

/// Properties of a connection: every kind that is given must hold, by any of its values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Match {
    /// Namespace of the client's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    /// Namespace and service account of the client's identity, in any trust domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccount>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccount>,
    /// The client's identity without `spiffe://`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    /// The client's address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    /// The address that is connected to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    /// The port that is connected to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
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
    /// How it begins.
    Prefix(Text),
    /// How it ends.
    Suffix(Text),
    /// Whether there is one. Written as `{"Presence": null}`, for `istioctl` knows matches only as objects.
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
            Self::Exact(t) => text == t,
            Self::Prefix(t) => text.starts_with(t.as_str()),
            Self::Suffix(t) => text.ends_with(t.as_str()),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl Policy {
    /// `namespace/name`: what workloads refer to, and what reasons print.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
