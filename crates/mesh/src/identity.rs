//! SPIFFE identities as Istio forms them.

use std::fmt;
use std::str::FromStr;

use crate::text::Text;

/// The trust domain when nothing else is said.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Who a workload is: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Such as `cluster.local`.
    pub trust_domain: Text,
    /// Kubernetes namespace.
    pub namespace: Text,
    /// Kubernetes service account.
    pub service_account: Text,
}

/// A text that is no identity of the form that Istio uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
pub struct NotAnIdentity(pub String);

impl Identity {
    /// The identity as policies write it, without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(s: &str) -> Result<Self, NotAnIdentity> {
        let parts: Vec<&str> = s.strip_prefix("spiffe://").unwrap_or_default().split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", service_account]
                if ![trust_domain, namespace, service_account].contains(&"") =>
            {
                Ok(Self {
                    trust_domain: trust_domain.into(),
                    namespace: namespace.into(),
                    service_account: service_account.into(),
                })
            }
            _ => Err(NotAnIdentity(s.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_goes_both_ways_and_nothing_else_is_taken() {
        let text = "spiffe://cluster.local/ns/default/sa/client";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.principal(), "cluster.local/ns/default/sa/client");
        for bad in [
            "",
            "spiffe://",
            "cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://t/ns/a/sa/b/c",
            "spiffe://t/sa/a/ns/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
