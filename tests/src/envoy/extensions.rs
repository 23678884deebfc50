//! The extensions that an Envoy has, and resources without the others.

use std::collections::BTreeSet;

use super::schema::{Part, parts_of};
use super::wire::{self, Field};

/// The name of a filter state factory that plain Envoy has under another name of the same length.
const RENAMED: [&[u8]; 2] = [b"istio.hashable_string", b"envoy.hashable_string"];

/// The types of Envoy's extensions, which its first request lists.
#[derive(Debug, Default)]
pub struct Extensions(BTreeSet<String>);

/// A response without what Envoy lacks.
#[derive(Debug, PartialEq, Eq)]
pub struct Filtered {
    /// The response.
    pub response: Vec<u8>,
    /// A line for each change.
    pub log: Vec<String>,
}

impl Extensions {
    /// Learns from a `DeltaDiscoveryRequest`. Returns what to log: what Envoy rejects.
    pub fn read_request(&mut self, request: &[u8]) -> Vec<String> {
        let Ok(request) = wire::decode(request) else {
            return vec!["cannot decode a request of Envoy".to_owned()];
        };
        let parse = |message: &[u8]| wire::decode(message).unwrap_or_default();
        for node in wire::contents(&request, 1).map(parse) {
            for extension in wire::contents(&node, 9).map(parse) {
                let kinds = wire::contents(&extension, 6);
                let kinds = kinds.map(|kind| String::from_utf8_lossy(kind).into_owned());
                self.0.extend(kinds);
            }
        }
        let statuses = wire::contents(&request, 7).map(parse);
        let rejection = |status: Vec<Field>| {
            let (kind, why) = (wire::text(&request, 2), wire::text(&status, 2));
            format!("Envoy REJECTED {kind}: {why}")
        };
        statuses.map(rejection).collect()
    }

    /// A `DeltaDiscoveryResponse` without the extensions that Envoy lacks. What is not removed
    /// keeps its bytes, and so does a response of an Envoy that has listed no extensions yet.
    pub fn filter_response(&self, response: &[u8]) -> Filtered {
        let Ok(mut fields) = wire::decode(response) else {
            return Filtered {
                response: response.to_vec(),
                log: vec!["cannot decode a response of the agent".to_owned()],
            };
        };
        let mut editor = Editor {
            known: &self.0,
            log: Vec::new(),
        };
        for resource in fields.iter_mut().filter(|f| f.number == 2) {
            if let Some(edited) = resource
                .content
                .as_deref()
                .and_then(|r| editor.edit_resource(r))
            {
                *resource = Field::of(2, edited);
            }
        }
        Filtered {
            response: wire::encode(&fields),
            log: editor.log,
        }
    }
}

/// Removes extensions from messages. Its functions return `None` for what has nothing to remove.
struct Editor<'a> {
    known: &'a BTreeSet<String>,
    log: Vec<String>,
}

impl Editor<'_> {
    fn lacks(&self, kind: &str) -> bool {
        !self.known.is_empty() && !self.known.contains(kind)
    }

    /// A resource of a response.
    fn edit_resource(&mut self, resource: &[u8]) -> Option<Vec<u8>> {
        let mut parts = wire::decode(resource).ok()?;
        let any = parts.iter_mut().find(|f| f.number == 2)?;
        *any = Field::of(2, self.edit_any(any.content.as_deref()?, "")?);
        Some(wire::encode(&parts))
    }

    /// An `Any`.
    fn edit_any(&mut self, any: &[u8], at: &str) -> Option<Vec<u8>> {
        let mut fields = wire::decode(any).ok()?;
        let kind = name_of(&fields);
        let parts = parts_of(&kind);
        if parts.is_empty() {
            return None;
        }
        let short = kind.rsplit('.').next().unwrap_or_default();
        let at = format!("{at}{}{short}", if at.is_empty() { "" } else { " > " });
        let value = fields.iter_mut().find(|f| f.number == 2)?;
        let mut content = value.content.clone()?;
        let renamed = self.rename(&mut content, &at);
        let edited = self.edit_message(&content, parts, &at);
        if !renamed && edited.is_none() {
            return None;
        }
        *value = Field::of(2, edited.unwrap_or(content));
        Some(wire::encode(&fields))
    }

    /// A message with parts.
    fn edit_message(&mut self, message: &[u8], parts: &[(u32, Part)], at: &str) -> Option<Vec<u8>> {
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

    /// An extension; `Some(None)` if Envoy lacks the extension itself.
    fn edit_extension(&mut self, message: &[u8], config: u32, at: &str) -> Option<Option<Vec<u8>>> {
        let mut fields = wire::decode(message).ok()?;
        let name = wire::text(&fields, 1);
        let any = fields.iter_mut().find(|f| f.number == config)?;
        let content = any.content.as_deref()?;
        let kind = type_of(&wire::decode(content).ok()?);
        if self.lacks(&kind) {
            self.log.push(format!("removed {name} ({kind}) from {at}"));
            return Some(None);
        }
        *any = Field::of(config, self.edit_any(content, at)?);
        Some(Some(wire::encode(&fields)))
    }

    /// Gives a filter state factory the name that it has in plain Envoy.
    fn rename(&mut self, content: &mut [u8], at: &str) -> bool {
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
            self.log.push(format!("renamed {from} to {to} in {at}"));
        }
        is_renamed
    }
}

/// The name in the type URL of an `Any`.
fn name_of(any: &[Field]) -> String {
    let url = wire::text(any, 1);
    url.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The type of an extension's `Any`, also of one that wraps it: as a structure, or as a route's
/// configuration of a filter.
fn type_of(any: &[Field]) -> String {
    let kind = name_of(any);
    let wrapped = || wire::decode(wire::contents(any, 2).last()?).ok();
    match kind.as_str() {
        "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => {
            wrapped().map_or(kind, |structure| name_of(&structure))
        }
        "envoy.config.route.v3.FilterConfig" => {
            let inner = |filter: Vec<Field>| wire::decode(wire::contents(&filter, 1).last()?).ok();
            wrapped().and_then(inner).map_or(kind, |any| type_of(&any))
        }
        _ => kind,
    }
}
