//! `/why`: explains where a connection would go, and whether it would be allowed.

use admin_http::{HttpResponse, bad_request, json, text};
use http::StatusCode;
use mesh::Mesh;
use mesh::explain::{Explanation, ExplanationResponse, Question, TransportProtocol, explain};

use crate::inpod::ServedPodStatus;

/// Explains the connection given by `source=…&destination=…&port=…&protocol=…`. In these values
/// only colons (IPv6) and slashes may be escaped. `pods` returns the pods of this node.
pub(super) fn respond(
    mesh: &Mesh,
    network: &str,
    from: &str,
    pods: impl FnOnce() -> Vec<ServedPodStatus>,
    query: &str,
) -> HttpResponse {
    let (mut source, mut destination, mut port) = (None, None, None);
    let mut protocol = TransportProtocol::default();
    for parameter in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value
            .replace("%3A", ":")
            .replace("%3a", ":")
            .replace("%2F", "/")
            .replace("%2f", "/");
        match name {
            "source" => source = Some(value),
            "destination" => destination = Some(value),
            "port" => match value.parse::<u16>() {
                Ok(number) => port = Some(number),
                Err(_) => {
                    return bad_request(format!(
                        "invalid port {value:?}: expected a number from 0 to 65535"
                    ));
                }
            },
            "protocol" => match value.parse() {
                Ok(named) => protocol = named,
                Err(e) => return bad_request(e.to_string()),
            },
            _ => {
                return bad_request(format!(
                    "unknown parameter {name:?}: expected source, destination, port or protocol"
                ));
            }
        }
    }
    let (Some(source), Some(destination)) = (source, destination) else {
        return bad_request(
            "source and destination are required: \
             /why?source=NAMESPACE/NAME&destination=ADDRESS-OR-NAME&port=PORT",
        );
    };
    let question = Question {
        source: &source,
        destination: &destination,
        port,
        network,
        protocol,
    };
    match explain(mesh, &question) {
        Ok(explanation) => json(&ExplanationResponse {
            from: from.to_owned(),
            exhausted_budgets: exhausted_budgets(&explanation, &pods()),
            explanation,
        }),
        Err(reason) => text(StatusCode::NOT_FOUND, format!("{reason}\n")),
    }
}

/// The budgets that the client and the possible destinations have exhausted, if they are on this
/// node.
fn exhausted_budgets(explanation: &Explanation, pods: &[ServedPodStatus]) -> Vec<String> {
    let endpoints = explanation
        .routes
        .iter()
        .filter_map(|r| r.workload.as_ref());
    let parties = std::iter::once(&explanation.source).chain(endpoints);
    let is_party = |name: &str| parties.clone().any(|party| party.workload == name);
    let lines = pods.iter().flat_map(|pod| {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let budgets = if is_party(&name) {
            &pod.exhausted_budgets[..]
        } else {
            &[]
        };
        budgets
            .iter()
            .map(move |budget| format!("{name}: {}", budget.line))
    });
    lines.collect()
}
