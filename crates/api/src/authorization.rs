//! `istio.security`: authorization policies.

use bytes::Bytes;

use crate::protobuf::Empty;

/// An authorization policy. Its resource name is `namespace/name`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Authorization {
    /// Policy name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Policy namespace; empty for a global policy.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The workloads that it applies to.
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// What happens to matching connections.
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// Rules, any of which must match.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    /// Whether the policy is only logged, not enforced.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
}

/// A rule: a conjunction of clauses.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rule {
    /// Clauses, all of which must match.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// A clause: a disjunction of matches.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Clause {
    /// Matches, any of which must hold.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// Properties of a connection. Each non-empty field must match, by any of its values.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Match {
    /// Namespace of the client's identity.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    /// Must not match any of these.
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    /// The client's principal: its identity without `spiffe://`.
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    /// Must not match any of these.
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    /// The client's address.
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Network>,
    /// Must not match any of these.
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Network>,
    /// The destination address.
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Network>,
    /// Must not match any of these.
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Network>,
    /// The destination port.
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    /// Must not match any of these.
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    /// Namespace and service account of the client's identity, in any trust domain.
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Must not match any of these.
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// `istio.security.Address`: an address, or the first `length` bits of one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Network {
    /// The address, 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// Prefix length in bits.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// A service account in a namespace.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub service_account: String,
}

/// How a text is compared.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StringMatch {
    /// The kind of comparison.
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

/// The kinds of comparisons.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum MatchType {
    /// The whole text.
    #[prost(string, tag = "1")]
    Exact(String),
    /// A prefix.
    #[prost(string, tag = "2")]
    Prefix(String),
    /// A suffix.
    #[prost(string, tag = "3")]
    Suffix(String),
    /// Any non-empty text.
    #[prost(message, tag = "4")]
    Presence(Empty),
}

/// The workloads that a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// All workloads.
    Global = 0,
    /// The workloads of its namespace.
    Namespace = 1,
    /// The workloads that list it.
    WorkloadSelector = 2,
}

/// What happens to matching connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Action {
    /// They are allowed.
    Allow = 0,
    /// They are denied.
    Deny = 1,
}
