//! The trust domain of the mesh and its aliases. A mesh that was renamed keeps its previous name as
//! an alias.

use crate::identity::{DEFAULT_TRUST_DOMAIN, Identity};
use crate::text::Text;

/// The trust domain of the mesh and its aliases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustDomains(Vec<Text>);

impl TrustDomains {
    /// Creates the set of names that stand for the same trust domain.
    pub fn new(own: &str, aliases: &[String]) -> Self {
        Self(
            std::iter::once(own)
                .chain(aliases.iter().map(String::as_str))
                .map(Text::from)
                .collect(),
        )
    }

    /// Whether two names stand for the same trust domain.
    pub fn same(&self, a: &str, b: &str) -> bool {
        let is_alias = |domain: &str| self.0.iter().any(|d| **d == *domain);
        a == b || (is_alias(a) && is_alias(b))
    }

    /// The principals by which policies of a workload in trust domain `own` may name an identity.
    /// One of the own trust domain has a principal under each of its names, and under
    /// `cluster.local`, which stands for the own trust domain in policies, as for sidecars.
    pub(crate) fn principals(&self, identity: &Identity, own: &str) -> Vec<String> {
        let mut names = vec![identity.trust_domain.as_str()];
        if self.same(&identity.trust_domain, own) {
            names.extend([own, DEFAULT_TRUST_DOMAIN]);
            if self.0.iter().any(|name| **name == *own) {
                names.extend(self.0.iter().map(Text::as_str));
            }
            names.sort_unstable();
            names.dedup();
        }
        names
            .into_iter()
            .map(|name| identity.principal_in(name))
            .collect()
    }

    /// Whether an identity is the expected SPIFFE id, possibly under an alias of its trust domain.
    pub fn matches(&self, found: &Identity, expected: &str) -> bool {
        if *expected == found.to_string() {
            return true;
        }
        expected.parse().is_ok_and(|e: Identity| {
            (&e.namespace, &e.service_account) == (&found.namespace, &found.service_account)
                && self.same(&e.trust_domain, &found.trust_domain)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_the_same_domain_and_another_name_is_not() {
        let domains = TrustDomains::new("new.example", &["old.example".to_owned()]);
        let found: Identity = "spiffe://old.example/ns/a/sa/b".parse().unwrap();
        assert!(domains.matches(&found, "spiffe://new.example/ns/a/sa/b"));
        assert!(domains.matches(&found, "spiffe://old.example/ns/a/sa/b"));
        assert!(!domains.matches(&found, "spiffe://new.example/ns/a/sa/c"));
        assert!(!domains.matches(&found, "spiffe://other/ns/a/sa/b"));
        assert!(domains.same("new.example", "old.example") && domains.same("x", "x"));
        let principals = |td: &str, own: &str| {
            let found = format!("spiffe://{td}/ns/a/sa/b").parse().unwrap();
            domains.principals(&found, own)
        };
        assert_eq!(
            principals("old.example", "new.example"),
            [
                "cluster.local/ns/a/sa/b",
                "new.example/ns/a/sa/b",
                "old.example/ns/a/sa/b"
            ]
        );
        // Without knowledge of aliases, cluster.local still stands for the workload's own.
        assert_eq!(
            principals("x", "x"),
            ["cluster.local/ns/a/sa/b", "x/ns/a/sa/b"]
        );
        assert_eq!(principals("x", "new.example"), ["x/ns/a/sa/b"]);
        assert!(!domains.same("new.example", "x") && !TrustDomains::default().same("a", "b"));
    }
}
