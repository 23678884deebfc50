//! `istio.security`: authorization policies.

use bytes::Bytes;

use crate::protobuf::Empty;

/// A policy. Its resource name is `namespace/name`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Authorization {
    /// Policy name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Policy namespace; empty for a global one.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Which workloads it is about.
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// What a match means.
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// Alternatives.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    /// Whether it is only logged what it would do.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
}

/// What must hold together.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rule {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// Alternatives within a rule.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Clause {
    /// Any of them.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// Properties of a connection: each kind that is given must hold, by any of its values.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Match {
    /// Of the client's identity.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    /// The client's identity without `spiffe://`.
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    /// The client's address.
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Network>,
    /// None of these.
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Network>,
    /// What is connected to.
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Network>,
    /// None of these.
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Network>,
    /// What is connected to.
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    /// None of these.
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    /// In any trust domain.
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// `istio.security.Address`: an address, or the first `length` bits of one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Network {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// In bits.
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
    /// One way.
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

/// The ways.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum MatchType {
    /// The whole text.
    #[prost(string, tag = "1")]
    Exact(String),
    /// How it begins.
    #[prost(string, tag = "2")]
    Prefix(String),
    /// How it ends.
    #[prost(string, tag = "3")]
    Suffix(String),
    /// Whether there is one.
    #[prost(message, tag = "4")]
    Presence(Empty),
}

/// Which workloads a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// All.
    Global = 0,
    /// Those of its namespace.
    Namespace = 1,
    /// Those that name it.
    WorkloadSelector = 2,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Action {
    /// What matches may pass.
    Allow = 0,
    /// What matches may not.
    Deny = 1,
}
