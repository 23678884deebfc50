//! SPIFFE identities in Istio's format.

use std::fmt;
use std::str::FromStr;

use crate::text::Text;

/// The default trust domain.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The identity of a workload: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Trust domain, such as `cluster.local`.
    pub trust_domain: Text,
    /// Kubernetes namespace.
    pub namespace: Text,
    /// Kubernetes service account.
    pub service_account: Text,
}

/// A text that is not a SPIFFE identity in Istio's format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid identity {0:?}: expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
pub struct InvalidIdentity(pub String);

impl Identity {
    /// The principal used in policies: the identity without `spiffe://`.
    pub fn principal(&self) -> String {
        self.principal_in(&self.trust_domain)
    }

    /// The principal under another name of the trust domain.
    pub(crate) fn principal_in(&self, trust_domain: &str) -> String {
        let (namespace, account) = (&self.namespace, &self.service_account);
        format!("{trust_domain}/ns/{namespace}/sa/{account}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(s: &str) -> Result<Self, InvalidIdentity> {
        let parts: Vec<&str> = s
            .strip_prefix("spiffe://")
            .unwrap_or_default()
            .split('/')
            .collect();
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
            _ => Err(InvalidIdentity(s.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip_and_other_texts_are_rejected() {
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
