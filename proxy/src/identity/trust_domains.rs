//! Which trust domains are ours. A mesh that was renamed has several: its own, and what it was called before.

use mesh::{Identity, Text};

/// Our own trust domain and its aliases.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustDomains(Vec<Text>);

impl TrustDomains {
    pub(crate) fn new(own: &str, aliases: &[String]) -> Self {
        Self(std::iter::once(own).chain(aliases.iter().map(String::as_str)).map(Text::from).collect())
    }

    /// Whether both are one domain.
    pub(crate) fn same(&self, a: &str, b: &str) -> bool {
        let ours = |domain: &str| self.0.iter().any(|d| **d == *domain);
        a == b || (ours(a) && ours(b))
    }

    /// Whether an identity is the one that was expected, perhaps under another of our names.
    pub(crate) fn is(&self, found: &Identity, expected: &str) -> bool {
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
    fn an_alias_is_the_same_domain_and_another_is_not() {
        let domains = TrustDomains::new("new.example", &["old.example".to_owned()]);
        let found: Identity = "spiffe://old.example/ns/a/sa/b".parse().unwrap();
        assert!(domains.is(&found, "spiffe://new.example/ns/a/sa/b"));
        assert!(domains.is(&found, "spiffe://old.example/ns/a/sa/b"));
        assert!(!domains.is(&found, "spiffe://new.example/ns/a/sa/c"));
        assert!(!domains.is(&found, "spiffe://other/ns/a/sa/b"));
        assert!(domains.same("new.example", "old.example") && domains.same("x", "x"));
        assert!(!domains.same("new.example", "x") && !TrustDomains::default().same("a", "b"));
    }
}
