//! The result of the previous plugin, which a chained plugin prints unchanged.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// A previous result: its bytes, and the addresses in it.
#[derive(Debug, Clone)]
pub struct PrevResult {
    raw: Box<RawValue>,
    addresses: Vec<IpAddr>,
    has_version: bool,
}

/// Why a previous result is rejected.
#[derive(Debug, thiserror::Error)]
pub enum PrevResultError {
    /// It is not a result of any CNI version.
    #[error("cannot parse prevResult: {0}")]
    Decode(#[source] serde_json::Error),
    /// It is not a JSON object.
    #[error("prevResult is not a JSON object")]
    NotAnObject,
    /// It contains an invalid address.
    #[error("invalid address {0:?} in prevResult: expected IP/LENGTH")]
    Address(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResultFields {
    #[serde(default, deserialize_with = "non_null")]
    cni_version: Option<String>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
    #[serde(default)]
    ip4: Option<OldIp>,
    #[serde(default)]
    ip6: Option<OldIp>,
}

/// Rejects null: an object that already has the key must not get a second one.
fn non_null<'de, D: serde::Deserializer<'de>>(version: D) -> Result<Option<String>, D::Error> {
    String::deserialize(version).map(Some)
}

/// An address since 0.3.0.
#[derive(Deserialize)]
struct Ip {
    address: String,
}

/// The only address of its family in 0.1.0 and 0.2.0.
#[derive(Deserialize)]
struct OldIp {
    ip: String,
}

impl PrevResult {
    /// Parses the addresses of a previous result.
    ///
    /// # Errors
    /// Returns [`PrevResultError`] if the result or an address in it is invalid.
    pub fn parse(raw: Box<RawValue>) -> Result<Self, PrevResultError> {
        if !raw.get().trim_start().starts_with('{') {
            return Err(PrevResultError::NotAnObject);
        }
        let fields: ResultFields =
            serde_json::from_str(raw.get()).map_err(PrevResultError::Decode)?;
        let parse = |text: String| {
            let address = text.split('/').next().and_then(|a| a.parse().ok());
            address.ok_or(PrevResultError::Address(text))
        };
        // A result has one of the shapes, but which one depends on the plugin as much as on the
        // version of the configuration.
        let new = fields.ips.into_iter().flatten().map(|ip| ip.address);
        let old = [fields.ip4, fields.ip6].into_iter().flatten();
        let addresses = new
            .chain(old.map(|ip| ip.ip))
            .map(parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            raw,
            addresses,
            has_version: fields.cni_version.is_some(),
        })
    }

    /// The pod's addresses, without prefix lengths.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The output of the plugin: the original bytes, with `cniVersion` inserted if it is missing.
    pub fn to_output(&self, version: &str) -> String {
        output(self.raw.get().trim(), self.has_version, version)
    }
}

/// The output of a plugin that has nothing to do with a pod: the previous result, whose content is
/// not validated, or an empty result if there is none.
pub fn unchanged_result(raw: Option<&RawValue>, version: &str) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        #[serde(default, deserialize_with = "is_present")]
        cni_version: bool,
    }
    let fields = raw.and_then(|raw| Some((raw, serde_json::from_str::<Version>(raw.get()).ok()?)));
    match fields {
        Some((raw, fields)) if raw.get().trim_start().starts_with('{') => {
            output(raw.get().trim(), fields.cni_version, version)
        }
        _ => output("{}", false, version),
    }
}

fn is_present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// The object, with `cniVersion` inserted if it has none.
fn output(object: &str, has_version: bool, version: &str) -> String {
    if has_version {
        return object.to_owned();
    }
    let rest = object.strip_prefix('{').unwrap_or_default().trim_start();
    let comma = if rest.starts_with('}') { "" } else { "," };
    let version = serde_json::Value::from(version);
    format!("{{\"cniVersion\":{version}{comma}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PrevResult, PrevResultError> {
        PrevResult::parse(RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn output_is_byte_identical() {
        let text = concat!(
            r#"{ "unknown" : [1, 2.50], "cniVersion": "0.4.0", "#,
            r#""ips":[{"version":"4","address":"10.0.0.1/24"},{"address":"fd00::1/64"}] }"#
        );
        let result = parse(text).unwrap();
        assert_eq!(result.to_output("0.4.0"), text);
        assert_eq!(result.addresses().len(), 2);
    }

    #[test]
    fn a_missing_version_is_inserted() {
        assert_eq!(
            parse("{}").unwrap().to_output("1.0.0"),
            r#"{"cniVersion":"1.0.0"}"#
        );
        assert_eq!(
            parse(r#"{ "ips":[]}"#).unwrap().to_output("1.0.0"),
            r#"{"cniVersion":"1.0.0","ips":[]}"#
        );
    }

    #[test]
    fn addresses_are_read_from_the_shape_of_every_version() {
        let expected: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        for text in [
            r#"{"ip4":{"ip":"10.0.0.1/24","gateway":"10.0.0.9"},"ip6":{"ip":"fd00::1/64"}}"#,
            concat!(
                r#"{"ips":[{"version":"4","address":"10.0.0.1/24"},"#,
                r#"{"version":"6","address":"fd00::1/64","interface":0}]}"#
            ),
            r#"{"ips":[{"address":"10.0.0.1/24"},{"address":"fd00::1/64"}],"ip4":null}"#,
        ] {
            assert_eq!(parse(text).unwrap().addresses(), expected, "{text}");
        }
        assert!(matches!(
            parse(r#"{"ip4":{"ip":"x"}}"#),
            Err(PrevResultError::Address(a)) if a == "x"
        ));
    }

    #[test]
    fn an_unchanged_result_needs_no_valid_content() {
        let output = |text: &str| {
            let raw = RawValue::from_string(text.to_owned()).unwrap();
            unchanged_result(Some(&raw), "0.2.0")
        };
        for text in [
            r#"{"cniVersion":null}"#,
            r#"{ "cniVersion":"9", "ips":[{"address":"x"}]}"#,
        ] {
            assert_eq!(output(text), text);
        }
        assert_eq!(output(r#"{"ips":1}"#), r#"{"cniVersion":"0.2.0","ips":1}"#);
        let empty = r#"{"cniVersion":"0.2.0"}"#;
        assert_eq!(
            [output("[1]"), unchanged_result(None, "0.2.0")],
            [empty, empty]
        );
    }

    #[test]
    fn invalid_results_are_rejected() {
        assert!(matches!(parse("[]"), Err(PrevResultError::NotAnObject)));
        assert!(matches!(
            parse(r#"{"cniVersion":null}"#),
            Err(PrevResultError::Decode(_))
        ));
        assert!(matches!(
            parse(r#"{"ips":1}"#),
            Err(PrevResultError::Decode(_))
        ));
        assert!(matches!(
            parse(r#"{"ips":[{"address":"x"}]}"#),
            Err(PrevResultError::Address(a)) if a == "x"
        ));
    }
}
