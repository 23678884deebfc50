//! Detects the fields of a message that this version does not know. Decoding skips them silently,
//! though they may change what the message means.
//!
//! The tables below list the fields of each message type; a test compares them with the types.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The known fields of a message type.
#[derive(Debug)]
pub(crate) struct MessageType {
    /// A bit for each number, which are all below 64.
    numbers: u64,
    /// A bit for each number of a message.
    message_numbers: u64,
    /// The numbers of those that are messages, with their types.
    messages: &'static [(u32, &'static MessageType)],
}

impl MessageType {
    fn knows(&self, number: u32) -> bool {
        number < u64::BITS && self.numbers & (1 << number) != 0
    }

    fn child(&self, number: u32) -> Option<&'static MessageType> {
        if number >= u64::BITS || self.message_numbers & (1 << number) == 0 {
            return None;
        }
        let mut messages = self.messages.iter();
        messages.find_map(|(n, child)| (*n == number).then_some(*child))
    }
}

/// The path to a field: for each message on the way, the field number and the index among its
/// occurrences. The last element is the unknown field.
pub(crate) type FieldPath = Vec<(u32, usize)>;

/// Finds the unknown fields in an encoded message that was decoded successfully.
pub(crate) fn unknown_fields(message: &[u8], kind: &MessageType) -> Vec<FieldPath> {
    let mut found = Vec::new();
    if is_known(message, kind) {
        return found; // as almost always
    }
    collect(message, kind, &mut Vec::new(), &mut found);
    found
}

/// Whether all fields of a message are known, as far as it is well-formed.
fn is_known(message: &[u8], kind: &MessageType) -> bool {
    let mut rest = message;
    while let Some(field) = short_field(&mut rest).or_else(|| next_field(&mut rest)) {
        let is_known_field = kind.knows(field.number)
            && kind
                .child(field.number)
                .is_none_or(|child| is_known(field.content, child));
        if !is_known_field {
            return false;
        }
    }
    true
}

fn collect(message: &[u8], kind: &MessageType, at: &mut FieldPath, found: &mut Vec<FieldPath>) {
    let mut rest = message;
    while let Some(field) = next_field(&mut rest) {
        let index = |rest: &[u8]| occurrences(&message[..message.len() - rest.len()], field.number);
        if !kind.knows(field.number) {
            at.push((field.number, index(rest)));
            found.push(at.clone());
            at.pop();
        } else if let Some(child) = kind.child(field.number) {
            let before = found.len();
            at.push((field.number, 0));
            collect(field.content, child, at, found);
            at.pop();
            if found.len() > before {
                let index = index(rest);
                let level = at.len();
                found[before..].iter_mut().for_each(|p| p[level].1 = index);
            }
        }
    }
}

struct Field<'a> {
    number: u32,
    /// Empty unless the field is length-delimited.
    content: &'a [u8],
}

/// Reads a length-delimited field from the front if its key has up to two bytes and its length has
/// one, which is the case for most fields. Otherwise, `None`, and nothing is read.
fn short_field<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    const MORE: u8 = 0x80;
    let (key, length, after) = match **rest {
        [key, length, ref after @ ..] if key < MORE => (u32::from(key), length, after),
        [low, high, length, ref after @ ..] if high < MORE => {
            (u32::from(low & !MORE) | u32::from(high) << 7, length, after)
        }
        _ => return None,
    };
    if key & 7 != WireType::LengthDelimited as u32 || key >> 3 == 0 || length >= MORE {
        return None;
    }
    let (content, after) = after.split_at_checked(length.into())?;
    *rest = after;
    Some(Field {
        number: key >> 3,
        content,
    })
}

/// Reads a field from the front; `None` at the end, or where the message is malformed.
fn next_field<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let (number, wire_type) = decode_key(rest).ok()?;
    let mut content: &[u8] = &[];
    if wire_type == WireType::LengthDelimited {
        let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
        (content, *rest) = rest.split_at_checked(length)?;
    } else {
        skip_field(wire_type, number, rest, DecodeContext::default()).ok()?;
    }
    Some(Field { number, content })
}

/// The index of the last field with this number in a part of a message.
fn occurrences(part: &[u8], number: u32) -> usize {
    let mut rest = part;
    let fields = std::iter::from_fn(|| next_field(&mut rest));
    fields
        .filter(|f| f.number == number)
        .count()
        .saturating_sub(1)
}

macro_rules! message_types {
    ($( $name:ident { $($number:literal $(: $child:ident)?),* } )*) => {$(
        pub(crate) static $name: MessageType = MessageType {
            numbers: 0 $(| 1 << $number)*,
            message_numbers: 0 $(| message_types!(@ $number $(: $child)?))*,
            messages: &[$($(($number, &$child),)?)*],
        };
    )*};
    (@ $number:literal) => { 0 };
    (@ $number:literal: $child:ident) => { 1 << $number };
}

// Fields that are known and not used are listed as well: 10 of a service and 26 of a workload are
// extensions, and 3 of a port is its application protocol.
message_types! {
    ADDRESS { 1: WORKLOAD, 2: SERVICE }
    WORKLOAD {
        1, 2, 3, 4, 5, 6, 7, 8: GATEWAY_ADDRESS, 9, 10, 11, 12, 13, 14, 16, 17, 18,
        19: GATEWAY_ADDRESS, 20, 21, 22: PORT_LIST_ENTRY, 23: APPLICATION_TUNNEL, 24: LOCALITY, 25,
        26, 27: UINT32_VALUE
    }
    SERVICE {
        1, 2, 3, 4: NETWORK_ADDRESS, 5: PORT, 6, 7: GATEWAY_ADDRESS, 8: LOAD_BALANCING, 9, 10, 11,
        12, 13: WEIGHTED_WAYPOINT, 14
    }
    WEIGHTED_WAYPOINT { 1: GATEWAY_ADDRESS, 2 }
    NETWORK_ADDRESS { 1, 2, 3 }
    NAMESPACED_HOSTNAME { 1, 2 }
    GATEWAY_ADDRESS { 1: NAMESPACED_HOSTNAME, 2: NETWORK_ADDRESS, 3 }
    PORT_LIST_ENTRY { 1, 2: PORT_LIST }
    PORT_LIST { 1: PORT }
    PORT { 1, 2, 3 }
    APPLICATION_TUNNEL { 1, 2 }
    LOCALITY { 1, 2, 3 }
    LOAD_BALANCING { 1, 2, 3 }
    UINT32_VALUE { 1 }
    AUTHORIZATION { 1, 2, 3, 4, 5: RULE, 6 }
    RULE { 1: CLAUSE }
    CLAUSE { 2: MATCH }
    MATCH {
        1: STRING_MATCH, 2: STRING_MATCH, 3: STRING_MATCH, 4: STRING_MATCH, 5: NETWORK, 6: NETWORK,
        7: NETWORK, 8: NETWORK, 9, 10, 11: SERVICE_ACCOUNT_MATCH, 12: SERVICE_ACCOUNT_MATCH
    }
    NETWORK { 1, 2 }
    SERVICE_ACCOUNT_MATCH { 1, 2 }
    STRING_MATCH { 1, 2, 3, 4: EMPTY }
    EMPTY {}
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prost::Message;

    use super::*;
    use crate::workload as wire;

    /// The field numbers of each message in a source file, and whether they are messages, from the
    /// attributes of its fields.
    fn fields_in_source(source: &str) -> BTreeMap<String, BTreeSet<(u32, bool)>> {
        let mut all: BTreeMap<String, BTreeSet<(u32, bool)>> = BTreeMap::new();
        let mut current = String::new();
        for line in source.lines().map(str::trim) {
            let name = line
                .strip_prefix("pub struct ")
                .or_else(|| line.strip_prefix("pub enum "));
            if let Some(name) = name {
                current = name
                    .trim_end_matches(" {")
                    .trim_end_matches(" {}")
                    .to_owned();
                if line.starts_with("pub struct") {
                    all.entry(current.clone()).or_default();
                }
            }
            let Some(attribute) = line.strip_prefix("#[prost(") else {
                continue;
            };
            let is_message = attribute.contains("message");
            for part in attribute.split(" = \"").skip(1) {
                let numbers = part.split('"').next().unwrap();
                for number in numbers.split(", ").filter_map(|n| n.parse().ok()) {
                    // The fields of a oneof are listed with their types in its enumeration.
                    if !attribute.contains("oneof") {
                        all.entry(current.clone())
                            .or_default()
                            .insert((number, is_message));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn the_tables_list_exactly_the_fields_of_the_messages() {
        let mut of_source = fields_in_source(include_str!("workload.rs"));
        of_source.extend(fields_in_source(include_str!("authorization.rs")));
        // The oneofs belong to these messages.
        for (oneof, message) in [
            ("Type", "Address"),
            ("Destination", "GatewayAddress"),
            ("MatchType", "StringMatch"),
        ] {
            let fields = of_source.remove(oneof).unwrap();
            of_source.get_mut(message).unwrap().extend(fields);
        }
        let tables: [(&str, &MessageType, &[u32]); 19] = [
            ("Address", &ADDRESS, &[]),
            ("Workload", &WORKLOAD, &[26]),
            ("Service", &SERVICE, &[10]),
            ("WeightedWaypoint", &WEIGHTED_WAYPOINT, &[]),
            ("NetworkAddress", &NETWORK_ADDRESS, &[]),
            ("NamespacedHostname", &NAMESPACED_HOSTNAME, &[]),
            ("GatewayAddress", &GATEWAY_ADDRESS, &[]),
            ("PortList", &PORT_LIST, &[]),
            ("Port", &PORT, &[3]),
            ("ApplicationTunnel", &APPLICATION_TUNNEL, &[]),
            ("Locality", &LOCALITY, &[]),
            ("LoadBalancing", &LOAD_BALANCING, &[]),
            ("Authorization", &AUTHORIZATION, &[]),
            ("Rule", &RULE, &[]),
            ("Clause", &CLAUSE, &[]),
            ("Match", &MATCH, &[]),
            ("Network", &NETWORK, &[]),
            ("ServiceAccountMatch", &SERVICE_ACCOUNT_MATCH, &[]),
            ("StringMatch", &STRING_MATCH, &[]),
        ];
        for (name, table, unused) in tables {
            let listed: BTreeSet<(u32, bool)> = (0..u64::BITS)
                .filter(|number| table.knows(*number) && !unused.contains(number))
                .map(|number| (number, table.child(number).is_some()))
                .collect();
            assert_eq!(Some(listed), of_source.remove(name), "{name}");
        }
        assert!(of_source.is_empty(), "without a table: {of_source:?}");
    }

    #[test]
    fn short_fields_are_read_as_any_others() {
        let long = "x".repeat(200);
        for number in [1, 15, 16, 300] {
            for text in ["", "short", &long] {
                let mut encoded = Vec::new();
                prost::encoding::string::encode(number, &text.to_owned(), &mut encoded);
                prost::encoding::uint32::encode(1, &7, &mut encoded);
                let (mut short, mut any) = (&encoded[..], &encoded[..]);
                let expected = next_field(&mut any).unwrap();
                match short_field(&mut short) {
                    Some(field) => {
                        assert_eq!((field.number, field.content), (number, text.as_bytes()));
                        assert_eq!(
                            (expected.number, expected.content, any),
                            (number, text.as_bytes(), short)
                        );
                    }
                    None => assert_eq!((text, short), (&*long, &encoded[..])),
                }
                assert!(short_field(&mut &encoded[..1]).is_none());
            }
        }
        let mut number = Vec::new();
        prost::encoding::uint32::encode(1, &7, &mut number);
        assert!(
            short_field(&mut &number[..]).is_none(),
            "not length-delimited"
        );
    }

    #[test]
    fn the_path_of_an_unknown_field_names_each_message_on_the_way() {
        #[derive(Clone, PartialEq, prost::Message)]
        struct FutureGateway {
            #[prost(uint32, tag = "3")]
            port: u32,
            #[prost(string, tag = "9")]
            new: String,
        }
        let entry = wire::Address {
            r#type: Some(wire::Type::Workload(wire::Workload {
                uid: "u".to_owned(),
                services: [
                    ("a/b".to_owned(), wire::PortList::default()),
                    ("c/d".to_owned(), wire::PortList::default()),
                ]
                .into(),
                ..wire::Workload::default()
            })),
        };
        assert_eq!(
            unknown_fields(&entry.encode_to_vec(), &ADDRESS),
            Vec::<FieldPath>::new()
        );
        // A gateway with field 9, as the second of two weighted waypoints.
        let gateway = FutureGateway {
            port: 1,
            new: "x".to_owned(),
        }
        .encode_to_vec();
        let mut service = Vec::new();
        for waypoint in [&[][..], &gateway] {
            let mut weighted = Vec::new();
            prost::encoding::bytes::encode(1, &waypoint.to_vec(), &mut weighted);
            prost::encoding::bytes::encode(13, &weighted, &mut service);
        }
        prost::encoding::uint32::encode(99, &1, &mut service);
        let mut address = Vec::new();
        prost::encoding::bytes::encode(2, &service, &mut address);
        assert_eq!(
            unknown_fields(&address, &ADDRESS),
            [vec![(2, 0), (13, 1), (1, 0), (9, 0)], vec![(2, 0), (99, 0)]]
        );
    }
}
