//! The result of the plugin before us. A chained plugin prints it again unchanged.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A previous result: its bytes, and the addresses in it.
#[derive(Debug, Clone)]
pub struct PrevResult {
    raw: Box<RawValue>,
    addresses: Vec<IpAddr>,
    has_version: bool,
}

/// Why a previous result cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrevResultError {
    /// It is not a result of any version.
    #[error("prevResult cannot be read: {0}")]
    Decode(#[source] serde_json::Error),
    /// It is some other JSON value than an object.
    #[error("prevResult is not a JSON object")]
    NotAnObject,
    /// An address in it is none.
    #[error("prevResult has the address {0:?}, which is not an IP address with a prefix length")]
    Address(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default, deserialize_with = "there")]
    cni_version: Option<String>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

/// Not null: an object that has the key must not get it a second time.
fn there<'de, D: serde::Deserializer<'de>>(version: D) -> Result<Option<String>, D::Error> {
    String::deserialize(version).map(Some)
}

#[derive(Deserialize)]
struct Ip {
    address: String,
}

impl PrevResult {
    /// Reads the addresses out of a previous result.
    ///
    /// # Errors
    /// [`PrevResultError`].
    pub fn parse(raw: Box<RawValue>) -> Result<Self, PrevResultError> {
        if !raw.get().trim_start().starts_with('{') {
            return Err(PrevResultError::NotAnObject);
        }
        let shape: Shape = serde_json::from_str(raw.get()).map_err(PrevResultError::Decode)?;
        let parse = |ip: Ip| {
            let address = ip.address.split('/').next().and_then(|a| a.parse().ok());
            address.ok_or(PrevResultError::Address(ip.address))
        };
        let addresses = shape.ips.unwrap_or_default().into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { raw, addresses, has_version: shape.cni_version.is_some() })
    }

    /// The pod's addresses, without prefix lengths.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// What to print: the bytes that came in, with `cniVersion` put in front where it was missing.
    pub fn to_output(&self, version: &str) -> String {
        let raw = self.raw.get().trim();
        if self.has_version {
            return raw.to_owned();
        }
        let rest = raw.strip_prefix('{').unwrap_or_default().trim_start();
        let comma = if rest.starts_with('}') { "" } else { "," };
        format!("{{\"cniVersion\":\"{version}\"{comma}{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PrevResult, PrevResultError> {
        PrevResult::parse(RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn bytes_pass_unchanged() {
        let text = r#"{ "unknown" : [1, 2.50], "cniVersion": "0.4.0", "ips":[{"version":"4","address":"10.0.0.1/24"},{"address":"fd00::1/64"}] }"#;
        let result = parse(text).unwrap();
        assert_eq!(result.to_output("0.4.0"), text);
        assert_eq!(result.addresses().len(), 2);
    }

    #[test]
    fn a_missing_version_is_put_in() {
        assert_eq!(parse("{}").unwrap().to_output("1.0.0"), r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(parse(r#"{ "ips":[]}"#).unwrap().to_output("1.0.0"), r#"{"cniVersion":"1.0.0","ips":[]}"#);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        assert!(matches!(parse("[]"), Err(PrevResultError::NotAnObject)));
        assert!(matches!(parse(r#"{"cniVersion":null}"#), Err(PrevResultError::Decode(_))));
        assert!(matches!(parse(r#"{"ips":1}"#), Err(PrevResultError::Decode(_))));
        assert!(matches!(parse(r#"{"ips":[{"address":"x"}]}"#), Err(PrevResultError::Address(a)) if a == "x"));
    }
}
