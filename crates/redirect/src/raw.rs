//! rtnetlink messages as sent by the kernel, to compare everything in them with what Underpass
//! writes, and to delete what it does not know.

use std::collections::BTreeMap;

use netlink_packet_core::Emitable;

/// Length of `struct fib_rule_hdr` and of `struct rtmsg`.
const HEADER: usize = 12;
/// Length of an attribute's header.
const ATTRIBUTE: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What a message selects and does, by which two rules or routes differ.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content<'a> {
    pub(crate) header: [u8; HEADER],
    pub(crate) attributes: BTreeMap<u16, &'a [u8]>,
}

impl<'a> Content<'a> {
    /// Reads the body of a message; stops at the first attribute that exceeds it.
    pub(crate) fn of(body: &'a [u8]) -> Self {
        let mut header = [0; HEADER];
        let len = body.len().min(HEADER);
        header[..len].copy_from_slice(&body[..len]);
        let attributes = attributes(body.get(HEADER..).unwrap_or_default());
        Self { header, attributes }
    }

    /// A number in the processor's byte order.
    pub(crate) fn number(&self, kind: u16) -> Option<u32> {
        let value = *self.attributes.get(&kind)?;
        Some(u32::from_ne_bytes(value.try_into().ok()?))
    }

    /// Removes an attribute with one of the values that change nothing.
    pub(crate) fn ignore(&mut self, kind: u16, values: &[&[u8]]) {
        if self
            .attributes
            .get(&kind)
            .is_some_and(|v| values.contains(v))
        {
            self.attributes.remove(&kind);
        }
    }
}

/// Reads attributes by their type; stops at the first that exceeds the input.
pub(crate) fn attributes(mut rest: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut out = BTreeMap::new();
    while let [a, b, c, d, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(ATTRIBUTE..len) else {
            break;
        };
        out.insert(u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

/// Encodes the body of a message that Underpass would send.
pub(crate) fn body_of(message: &impl Emitable) -> Vec<u8> {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    body
}

/// A request to delete what the body of a message from the kernel describes; `kind` is that of the
/// request, such as RTM_DELRULE.
pub(crate) fn deletion(kind: u16, body: &[u8]) -> Vec<u8> {
    const NLM_F_REQUEST: u16 = 1;
    let len = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let header = [len.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    let mut out = [header, body.to_vec()].concat();
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    out
}
