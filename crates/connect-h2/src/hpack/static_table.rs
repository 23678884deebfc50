//! The static table (RFC 7541 appendix A).

/// Names and values, in the order of their index, which begins with 1.
#[rustfmt::skip]
pub(super) static ENTRIES: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The index of a field, and whether the entry has its value as well; `None` if no entry has its
/// name.
pub(super) fn find(name: &[u8], value: &[u8]) -> Option<(usize, bool)> {
    let has_name = |entry: &&(&str, &str)| entry.0.as_bytes() == name;
    let first = ENTRIES.iter().position(|entry| has_name(&entry))?;
    let same_name = ENTRIES[first..].iter().take_while(has_name);
    for (offset, entry) in same_name.enumerate() {
        if entry.1.as_bytes() == value {
            return Some((first + offset + 1, true));
        }
    }
    Some((first + 1, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_among_entries_of_the_same_name() {
        assert_eq!(find(b":status", b"400"), Some((12, true)));
        assert_eq!(find(b":status", b"503"), Some((8, false)));
        assert_eq!(find(b":method", b"CONNECT"), Some((2, false)));
        assert_eq!(find(b"www-authenticate", b"x"), Some((61, false)));
        assert_eq!(find(b"baggage", b""), None);
    }
}
