//! What the proxy of the node says of itself: how it stands with its control plane, and with its certificates.

use std::net::SocketAddr;

use serde_json::Value;

use crate::ask::read;

/// The proxy's own status, asked in the network namespace of the calling thread.
pub(super) fn ask_proxy(proxy: SocketAddr) -> anyhow::Result<Value> {
    let (status, body) = crate::proxy_of_node::ask_proxy(proxy, "/status")?;
    read(status, &body)
}

/// The same in lines: the mesh it works with, and whatever is wrong.
pub(super) fn lines(status: Result<&Value, String>) -> Vec<String> {
    let status = match status {
        Ok(status) => status,
        // Its first line has the code and the reason.
        Err(why) => return vec![format!("mesh unknown: {}", why.lines().next().unwrap_or_default())],
    };
    let mesh = match status["controlPlane"]["line"].as_str() {
        Some(line) => format!("control plane: {line}"),
        None => "mesh from a file".to_owned(),
    };
    let mut lines = vec![mesh];
    let certificates = status["certificates"].as_array().into_iter().flatten();
    lines.extend(certificates.filter_map(|c| {
        let trouble = c["trouble"].as_str()?;
        Some(format!("certificate of {} ({}): {trouble}", text(c, "identity"), text(c, "state")))
    }));
    lines.extend(status["revocationTrouble"].as_str().map(|t| format!("revoked certificates: {t}")));
    lines
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_has_a_line() {
        assert_eq!(lines(Ok(&json!({ "certificates": [] }))), ["mesh from a file"]);
        let status = json!({
            "controlPlane": { "line": "no connection to https://istiod:15012 for 3 s" },
            "certificates": [
                { "identity": "spiffe://a/ns/b/sa/c", "state": "Available" },
                { "identity": "spiffe://a/ns/b/sa/d", "state": "Initializing", "trouble": "UP-CONTROL-006: refused" },
            ],
            "revocationTrouble": "no file",
        });
        assert_eq!(
            lines(Ok(&status)),
            [
                "control plane: no connection to https://istiod:15012 for 3 s",
                "certificate of spiffe://a/ns/b/sa/d (Initializing): UP-CONTROL-006: refused",
                "revoked certificates: no file",
            ]
        );
        assert_eq!(lines(Err("UP-CLI-001: x\nmore".to_owned())), ["mesh unknown: UP-CLI-001: x"]);
    }
}
