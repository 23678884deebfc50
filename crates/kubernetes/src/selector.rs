//! Label selectors, and the selectors by which an administrator chooses the pods of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Expression, Selector, SelectorExt};
use serde::Deserialize;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector of the Kubernetes API. Unknown fields are errors: a selector with a misspelt
/// one would select every object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RawSelector {
    match_labels: Labels,
    match_expressions: Vec<RawRequirement>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequirement {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

/// A label selector; without any requirement, it matches every object.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "RawSelector")]
pub struct LabelMatch(Selector);

impl TryFrom<RawSelector> for LabelMatch {
    type Error = String;

    fn try_from(raw: RawSelector) -> Result<Self, Self::Error> {
        let requirement = |raw: RawRequirement| LabelSelectorRequirement {
            key: raw.key,
            operator: raw.operator,
            values: Some(raw.values),
        };
        let is_valid = |raw: &RawRequirement| {
            let needs_values = matches!(raw.operator.as_str(), "In" | "NotIn");
            !raw.key.is_empty() && raw.values.is_empty() != needs_values
        };
        if let Some(bad) = raw.match_expressions.iter().find(|raw| !is_valid(raw)) {
            let RawRequirement { key, operator, .. } = bad;
            return Err(format!(
                "invalid values for key {key:?} and operator {operator}"
            ));
        }
        let requirements = raw.match_expressions.into_iter().map(requirement);
        let selector = LabelSelector {
            match_labels: Some(raw.match_labels),
            match_expressions: Some(requirements.collect()),
        };
        let selector = Selector::try_from(selector).map_err(|e| e.to_string())?;
        Ok(Self(selector))
    }
}

impl LabelMatch {
    /// Whether it matches an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.matches(labels)
    }

    /// The keys of the labels that it reads.
    fn keys(&self) -> impl Iterator<Item = String> {
        self.0.clone().into_iter().map(|e| match e {
            Expression::In(key, _)
            | Expression::NotIn(key, _)
            | Expression::Equal(key, _)
            | Expression::NotEqual(key, _)
            | Expression::Exists(key)
            | Expression::DoesNotExist(key) => key,
        })
    }
}

/// Istio's `enablementSelectors`: a pod joins the mesh if one of them matches both its labels and
/// those of its namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct EnablementSelectors(Vec<EnablementSelector>);

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct EnablementSelector {
    pod_selector: LabelMatch,
    namespace_selector: LabelMatch,
}

/// Why enablement selectors are invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Not a list of selectors.
    #[error("expected a list of podSelector and namespaceSelector: {0}")]
    Syntax(String),
    /// With an empty list, no pod would ever join.
    #[error("expected at least one selector")]
    Empty,
}

impl FromStr for EnablementSelectors {
    type Err = SelectorError;

    /// Parses YAML, or JSON.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let selectors: Vec<EnablementSelector> =
            serde_saphyr::from_str(text).map_err(|e| SelectorError::Syntax(e.to_string()))?;
        match selectors[..] {
            [] => Err(SelectorError::Empty),
            _ => Ok(Self(selectors)),
        }
    }
}

impl EnablementSelectors {
    /// The index of the first selector that matches a pod with these labels in a namespace with
    /// these labels.
    pub fn first_match(&self, pod: &Labels, namespace: &Labels) -> Option<usize> {
        self.0.iter().position(|selector| {
            selector.pod_selector.matches(pod) && selector.namespace_selector.matches(namespace)
        })
    }

    /// The keys of the labels that the selectors read.
    pub fn keys(&self) -> BTreeSet<String> {
        let selectors = self.0.iter();
        selectors
            .flat_map(|s| s.pod_selector.keys().chain(s.namespace_selector.keys()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Istio's chart has as its default.
    const ISTIO: &str = "
- podSelector:
    matchLabels: { istio.io/dataplane-mode: ambient }
- podSelector:
    matchExpressions:
      - { key: istio.io/dataplane-mode, operator: NotIn, values: [none] }
  namespaceSelector:
    matchLabels: { istio.io/dataplane-mode: ambient }
";

    fn labels(mode: &str) -> Labels {
        let mode = (!mode.is_empty()).then(|| mode.to_owned());
        let label = mode.map(|mode| ("istio.io/dataplane-mode".to_owned(), mode));
        label.into_iter().collect()
    }

    #[test]
    fn istios_default_selects_by_the_label_of_pod_and_namespace() {
        let selectors: EnablementSelectors = ISTIO.parse().unwrap();
        for (pod, namespace, expected) in [
            ("", "", None),
            ("ambient", "", Some(0)),
            ("ambient", "none", Some(0)),
            ("", "ambient", Some(1)),
            ("none", "ambient", None),
            ("other", "ambient", Some(1)),
            ("", "none", None),
        ] {
            let found = selectors.first_match(&labels(pod), &labels(namespace));
            assert_eq!(found, expected, "{pod} in {namespace}");
        }
        let keys = ["istio.io/dataplane-mode".to_owned()];
        assert_eq!(selectors.keys(), keys.into());
    }

    #[test]
    fn every_operator_is_supported_and_an_empty_selector_matches_everything() {
        let matches = |requirement: &str| {
            let text = format!("[{{ podSelector: {{ matchExpressions: [{requirement}] }} }}]");
            let selectors: EnablementSelectors = text.parse().unwrap();
            let pod = ("a".to_owned(), "b".to_owned());
            selectors.first_match(&[pod].into(), &Labels::new()) == Some(0)
        };
        for (requirement, expected) in [
            ("{ key: a, operator: In, values: [b, c] }", true),
            ("{ key: a, operator: NotIn, values: [b] }", false),
            ("{ key: a, operator: Exists }", true),
            ("{ key: a, operator: DoesNotExist }", false),
            ("{ key: z, operator: DoesNotExist }", true),
            ("", true),
        ] {
            assert_eq!(matches(requirement), expected, "{requirement}");
        }
    }

    #[test]
    fn what_would_select_unintended_pods_is_rejected() {
        for bad in [
            "",
            "[]",
            "a: b",
            "[{ podSelectors: {} }]",
            "[{ podSelector: { matchLabel: { a: b } } }]",
            "[{ podSelector: { matchLabels: [a] } }]",
            "[{ podSelector: { matchExpressions: [{ key: a, operator: Like }] } }]",
            "[{ podSelector: { matchExpressions: [{ operator: Exists }] } }]",
            "[{ podSelector: { matchExpressions: [{ key: '', operator: Exists }] } }]",
            "[{ podSelector: { matchExpressions: [{ key: a, operator: NotIn }] } }]",
            "[{ podSelector: { matchExpressions: [{ key: a, operator: In, values: [] }] } }]",
            "[{ podSelector: { matchExpressions: [{ key: a, operator: Exists, values: [b] }] } }]",
        ] {
            assert!(bad.parse::<EnablementSelectors>().is_err(), "{bad}");
        }
    }
}
