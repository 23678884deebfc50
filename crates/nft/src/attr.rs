//! Netlink attributes: a type, a length, a value padded to four bytes (linux/netlink.h).

/// The flag that says "this attribute holds attributes".
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Appends attributes to a message.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// nf_tables numbers travel in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }
}

/// Walks the attributes of a message; stops at the first that does not fit.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut w = Writer::default();
        w.text(1, "abc").nested(2, |w| {
            w.be32(7, 0x0102_0304);
        });
        let r = Reader(&w.0);
        assert_eq!(r.text(1).as_deref(), Some("abc"));
        assert_eq!(r.nested(2).and_then(|r| r.be32(7)), Some(0x0102_0304));
        assert_eq!(r.find(3), None);
    }

    #[test]
    fn cut_off_input_ends_the_walk() {
        let mut w = Writer::default();
        w.text(1, "abcdef");
        for end in 0..w.0.len() {
            assert!(Reader(&w.0[..end]).count() <= 1);
        }
        assert_eq!(Reader(&[3, 0, 1, 0]).count(), 0, "a length shorter than the header");
    }
}
