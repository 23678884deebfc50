//! `/why`: where a connection would go, and whether it would be let in.

use admin_http::{Answer, json, text};
use http::StatusCode;
use mesh::Mesh;
use mesh::explain::{Answered, Question, explain};

/// Answers `source=…&destination=…&port=…`. Nothing in them needs escaping but the colons of IPv6 addresses and slashes.
pub(super) fn answer(mesh: &Mesh, network: &str, from: &str, query: &str) -> Answer {
    let bad = |why: String| text(StatusCode::BAD_REQUEST, why + "\n");
    let (mut source, mut destination, mut port) = (None, None, None);
    for parameter in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/");
        match name {
            "source" => source = Some(value),
            "destination" => destination = Some(value),
            "port" => match value.parse::<u16>() {
                Ok(number) => port = Some(number),
                Err(_) => return bad(format!("{value:?} is no port")),
            },
            _ => return bad(format!("there is no parameter {name:?}; there is: source, destination, port")),
        }
    }
    let (Some(source), Some(destination)) = (source, destination) else {
        return bad("who, and where to? /why?source=NAMESPACE/NAME&destination=ADDRESS-OR-NAME&port=PORT".to_owned());
    };
    let question = Question { source: &source, destination: &destination, port, network };
    match explain(mesh, &question) {
        Ok(explanation) => json(&Answered { from: from.to_owned(), explanation }),
        Err(why) => text(StatusCode::NOT_FOUND, format!("{why}\n")),
    }
}
