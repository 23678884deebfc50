//! Status of the node's proxy: its control plane connection, its certificates, its trust, and pods
//! that have exhausted a budget.

use serde_json::Value;

/// Renders the status: the source of the mesh, trusted roots, and problems.
pub(super) fn lines(status: Result<&Value, String>) -> Vec<String> {
    let status = match status {
        Ok(status) => status,
        // The first line has the code and the reason.
        Err(error) => {
            let reason = error.lines().next().unwrap_or_default();
            return vec![format!("mesh: unknown: {reason}")];
        }
    };
    let mesh = match status["controlPlane"]["line"].as_str() {
        Some(line) => format!("control plane: {line}"),
        None => "mesh: from a file".to_owned(),
    };
    let mut lines = vec![mesh];
    let certificates = status["certificates"].as_array().into_iter().flatten();
    lines.extend(certificates.filter_map(|c| {
        let (identity, state) = (text(c, "identity"), text(c, "state"));
        let trouble = c["trouble"].as_str()?;
        Some(format!("certificate of {identity} ({state}): {trouble}"))
    }));
    let trust = &status["trust"];
    let roots = trust["roots"].as_array().into_iter().flatten();
    lines.extend(roots.map(|root| {
        let days = root["expiresInS"].as_u64().unwrap_or_default() / 86_400;
        format!(
            "trusted root: {}, expires in {days} days",
            text(root, "subject")
        )
    }));
    let ignored = trust["ignored"].as_array().into_iter().flatten();
    let ignored = ignored.filter_map(|reason| Some(format!("ignored root: {}", reason.as_str()?)));
    lines.extend(ignored);
    let revocation = status["revocationTrouble"].as_str();
    lines.extend(revocation.map(|t| format!("revoked certificates: {t}")));
    lines.extend(exhausted_budgets(status));
    lines
}

/// Renders each budget that a pod of a proxy has exhausted.
pub(crate) fn exhausted_budgets(status: &Value) -> impl Iterator<Item = String> {
    let pods = status["pods"].as_array().into_iter().flatten();
    pods.flat_map(|pod| {
        let budgets = pod["exhaustedBudgets"].as_array().into_iter().flatten();
        budgets.map(move |budget| {
            let (namespace, name) = (text(pod, "namespace"), text(pod, "name"));
            format!("budget of {namespace}/{name}: {}", text(budget, "line"))
        })
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn problems_are_rendered_as_lines() {
        assert_eq!(
            lines(Ok(&json!({ "certificates": [] }))),
            ["mesh: from a file"]
        );
        let status = json!({
            "controlPlane": { "line": "no connection to https://istiod:15012 for 3 s" },
            "certificates": [
                { "identity": "spiffe://a/ns/b/sa/c", "state": "Available" },
                {
                    "identity": "spiffe://a/ns/b/sa/d",
                    "state": "Initializing",
                    "trouble": "UP-CONTROL-006: refused",
                },
            ],
            "trust": {
                "roots": [{ "subject": "O=cluster.local", "expiresInS": 8_640_000 }],
                "ignored": ["CN=old: UnsupportedCertVersion"],
            },
            "revocationTrouble": "no file",
            "pods": [
                { "namespace": "ns", "name": "modest" },
                {
                    "namespace": "ns",
                    "name": "greedy",
                    "exhaustedBudgets": [{ "line": "10 open connections, limit 10" }],
                },
            ],
        });
        assert_eq!(
            lines(Ok(&status)),
            [
                "control plane: no connection to https://istiod:15012 for 3 s",
                "certificate of spiffe://a/ns/b/sa/d (Initializing): UP-CONTROL-006: refused",
                "trusted root: O=cluster.local, expires in 100 days",
                "ignored root: CN=old: UnsupportedCertVersion",
                "revoked certificates: no file",
                "budget of ns/greedy: 10 open connections, limit 10",
            ]
        );
        assert_eq!(
            lines(Err("UP-CLI-001: x\nmore".to_owned())),
            ["mesh: unknown: UP-CLI-001: x"]
        );
    }
}
