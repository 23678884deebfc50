//! Integers with a prefix of less than 8 bits (RFC 7541 section 5.1).

use super::InvalidBlock;

/// Decodes an integer whose first byte has `prefix` bits of it, and removes it from `rest`.
/// Integers beyond 28 bits are invalid: nothing in a header block is that large.
pub(super) fn decode(rest: &mut &[u8], prefix: u32) -> Result<usize, InvalidBlock> {
    let mask = u8::MAX >> (8 - prefix);
    let mut value = usize::from(next(rest)? & mask);
    if value < usize::from(mask) {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next(rest)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(InvalidBlock)
}

/// Encodes an integer behind the bits of `first` that its prefix leaves.
pub(super) fn encode(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = u8::MAX >> (8 - prefix);
    let Some(mut rest) = value.checked_sub(usize::from(mask)) else {
        out.push(first | value as u8);
        return;
    };
    out.push(first | mask);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn next(rest: &mut &[u8]) -> Result<u8, InvalidBlock> {
    let (byte, after) = rest.split_first().ok_or(InvalidBlock)?;
    *rest = after;
    Ok(*byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_rfc_are_encoded_as_there() {
        for (value, prefix, expected) in [
            (10, 5, &[0b01010][..]),
            (1337, 5, &[0b11111, 0b1001_1010, 0b1010]),
            (42, 8, &[0b10_1010]),
        ] {
            let mut out = Vec::new();
            encode(&mut out, 0, prefix, value);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn endless_integers_are_invalid() {
        assert_eq!(decode(&mut &[0xff; 6][..], 7), Err(InvalidBlock));
        assert_eq!(
            decode(&mut &[0xff, 0x80, 0x80, 0x80, 0x80, 0][..], 7),
            Err(InvalidBlock)
        );
        assert_eq!(decode(&mut &[0xff, 0x80][..], 7), Err(InvalidBlock));
    }

    proptest! {
        #[test]
        fn encoded_integers_are_decoded(value in 0..1_usize << 28, prefix in 4..=7_u32) {
            let mut out = Vec::new();
            encode(&mut out, 0, prefix, value);
            let mut rest = &out[..];
            prop_assert_eq!(decode(&mut rest, prefix), Ok(value));
            prop_assert!(rest.is_empty());
        }
    }
}
