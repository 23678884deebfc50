//! Netlink attributes: a type, a length, a value padded to four bytes (linux/netlink.h).

/// Flag for an attribute that contains attributes.
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The attributes of a message.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends a number; nf_tables uses network byte order.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Appends a constant, which nf_tables nests in an attribute of its own (NFTA_DATA_VALUE).
    pub(crate) fn data(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, Self::default().bytes(1, value))
    }
}

/// Iterates over the attributes of a message; stops at the first that exceeds the input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self;
        attributes.find_map(|(k, v)| (k == kind).then_some(v))
    }

    pub(crate) fn text(self, kind: u16) -> Option<String> {
        let value = self.find(kind)?;
        let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
        std::str::from_utf8(&value[..end]).ok().map(str::to_owned)
    }

    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Reader<'a>> {
        self.find(kind).map(Reader)
    }

    /// Reads a constant that [`Writer::data`] wrote.
    pub(crate) fn data(self, kind: u16) -> Option<&'a [u8]> {
        self.nested(kind)?.find(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_attributes_are_read_back() {
        let inner = Writer::default().be32(7, 0x0102_0304);
        let w = Writer::default().text(1, "abc").nested(2, inner);
        let r = Reader(&w.0);
        assert_eq!(r.text(1).as_deref(), Some("abc"));
        assert_eq!(r.nested(2).and_then(|r| r.be32(7)), Some(0x0102_0304));
        assert_eq!(r.find(3), None);
    }

    #[test]
    fn truncated_input_ends_the_iteration() {
        let w = Writer::default().text(1, "abcdef");
        for end in 0..w.0.len() {
            assert!(Reader(&w.0[..end]).count() <= 1);
        }
        assert_eq!(
            Reader(&[3, 0, 1, 0]).count(),
            0,
            "a length shorter than the header"
        );
    }
}
