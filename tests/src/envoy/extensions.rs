//! The extensions that an Envoy has, and resources without the others.

use std::collections::BTreeSet;

use super::log_once;
use super::schema::{Part, parts_of};
use super::wire::{self, Field};

/// The name of a filter state factory that plain Envoy has under another name of the same length.
const RENAMED: [&[u8]; 2] = [b"istio.hashable_string", b"envoy.hashable_string"];

/// The types of Envoy's extensions, which its first request lists.
#[derive(Debug, Default)]
pub(super) struct Extensions(BTreeSet<String>);

impl Extensions {
    /// Learns from a `DeltaDiscoveryRequest`, and logs if Envoy rejects what it got.
    pub(super) fn read_request(&mut self, request: &[u8]) {
        let Ok(request) = wire::decode(request) else {
            return log_once("cannot decode a request of Envoy".to_owned());
        };
        let parse = |message: &[u8]| wire::decode(message).unwrap_or_default();
        for node in wire::contents(&request, 1).map(parse) {
            for extension in wire::contents(&node, 9).map(parse) {
                let kinds = wire::contents(&extension, 6);
                let kinds = kinds.map(|kind| String::from_utf8_lossy(kind).into_owned());
                self.0.extend(kinds);
            }
        }
        for status in wire::contents(&request, 7).map(parse) {
            let (kind, why) = (wire::text(&request, 2), wire::text(&status, 2));
            log_once(format!("Envoy REJECTED {kind}: {why}"));
        }
    }

    /// A `DeltaDiscoveryResponse` without the extensions that Envoy lacks.
    pub(super) fn filter_response(&self, response: &[u8]) -> Vec<u8> {
        let Ok(mut fields) = wire::decode(response) else {
            log_once("cannot decode a response of the agent".to_owned());
            return response.to_vec();
        };
        for resource in fields.iter_mut().filter(|f| f.number == 2) {
            let Some(Ok(mut parts)) = resource.content.as_deref().map(wire::decode) else {
                continue;
            };
            for any in parts.iter_mut().filter(|f| f.number == 2) {
                if let Some(edited) = any.content.as_deref().and_then(|a| self.edit_any(a, "")) {
                    *any = Field::of(2, edited);
                }
            }
            *resource = Field::of(2, wire::encode(&parts));
        }
        wire::encode(&fields)
    }

    fn lacks(&self, kind: &str) -> bool {
        !self.0.is_empty() && !self.0.contains(kind)
    }

    /// An `Any` without what Envoy lacks; `None` if there is nothing to remove.
    fn edit_any(&self, any: &[u8], at: &str) -> Option<Vec<u8>> {
        let mut fields = wire::decode(any).ok()?;
        let kind = type_of(&fields);
        let parts = parts_of(&kind);
        if parts.is_empty() {
            return None;
        }
        let short = kind.rsplit('.').next().unwrap_or_default();
        let at = format!("{at}{}{short}", if at.is_empty() { "" } else { " > " });
        let value = fields.iter_mut().find(|f| f.number == 2)?;
        let mut content = value.content.clone()?;
        let renamed = rename(&mut content, &at);
        let edited = self.edit_message(&content, parts, &at);
        if !renamed && edited.is_none() {
            return None;
        }
        *value = Field::of(2, edited.unwrap_or(content));
        Some(wire::encode(&fields))
    }

    /// A message without what Envoy lacks; `None` if there is nothing to remove.
    fn edit_message(&self, message: &[u8], parts: &[(u32, Part)], at: &str) -> Option<Vec<u8>> {
        let mut is_changed = false;
        let mut kept = Vec::new();
        for mut field in wire::decode(message).ok()? {
            let part = parts.iter().find(|(number, _)| *number == field.number);
            if let (Some((_, part)), Some(content)) = (part, &field.content) {
                let edited = match part {
                    Part::Within(parts) => self.edit_message(content, parts, at).map(Some),
                    Part::Extensions { config } => self.edit_extension(content, *config, at),
                };
                match edited {
                    Some(Some(edited)) => {
                        is_changed = true;
                        field = Field::of(field.number, edited);
                    }
                    Some(None) => {
                        is_changed = true;
                        continue;
                    }
                    None => {}
                }
            }
            kept.push(field);
        }
        is_changed.then(|| wire::encode(&kept))
    }

    /// An extension without what Envoy lacks: `Some(None)` if that is the extension itself, `None`
    /// if there is nothing to remove.
    fn edit_extension(&self, message: &[u8], config: u32, at: &str) -> Option<Option<Vec<u8>>> {
        let mut fields = wire::decode(message).ok()?;
        let name = wire::text(&fields, 1);
        let any = fields.iter_mut().find(|f| f.number == config)?;
        let content = any.content.as_deref()?;
        let kind = type_of(&wire::decode(content).ok()?);
        if self.lacks(&kind) {
            log_once(format!("removed {name} ({kind}) from {at}"));
            return Some(None);
        }
        *any = Field::of(config, self.edit_any(content, at)?);
        Some(Some(wire::encode(&fields)))
    }
}

/// The type of an `Any`, also of one that wraps it as a structure.
fn type_of(any: &[Field]) -> String {
    let kind = |fields: &[Field]| {
        let url = wire::text(fields, 1);
        url.rsplit('/').next().unwrap_or_default().to_owned()
    };
    match kind(any).as_str() {
        "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => {
            let wrapped = wire::contents(any, 2).last().unwrap_or_default();
            kind(&wire::decode(wrapped).unwrap_or_default())
        }
        kind => kind.to_owned(),
    }
}

/// Gives a filter state factory the name that it has in plain Envoy.
fn rename(content: &mut [u8], at: &str) -> bool {
    let [from, to] = RENAMED;
    let mut is_renamed = false;
    let mut start = 0;
    while let Some(found) = content[start..].windows(from.len()).position(|w| w == from) {
        start += found;
        content[start..start + from.len()].copy_from_slice(to);
        is_renamed = true;
    }
    if is_renamed {
        let [from, to] = RENAMED.map(String::from_utf8_lossy);
        log_once(format!("renamed {from} to {to} in {at}"));
    }
    is_renamed
}
