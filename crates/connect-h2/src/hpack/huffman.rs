//! The Huffman code of strings (RFC 7541 section 5.2 and appendix B). The code is canonical: the
//! lengths of the codes determine them.

use super::InvalidBlock;

/// The end of a string, which is never encoded; its beginning is the padding.
const END: usize = 256;
/// The length of the longest code, in bits.
const LONGEST: usize = 30;

/// The length of the code of each byte and of the end, in bits.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// What decoding needs of the code.
struct Code {
    /// All symbols, ordered by their codes.
    symbols: [u16; 257],
    /// For each length: the first code of greater length, as the beginning of 32 bits.
    limits: [u64; LONGEST + 1],
    /// For each length: the first code, and the index of its symbol.
    first: [(u32, usize); LONGEST + 1],
}

static CODE: Code = Code::derive();

impl Code {
    const fn derive() -> Self {
        let mut code = Self {
            symbols: [0; 257],
            limits: [0; LONGEST + 1],
            first: [(0, 0); LONGEST + 1],
        };
        let (mut next, mut count, mut length) = (0_u64, 0, 1);
        while length <= LONGEST {
            next <<= 1;
            code.first[length] = (next as u32, count);
            let mut symbol = 0;
            while symbol <= END {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[count] = symbol as u16;
                    count += 1;
                    next += 1;
                }
                symbol += 1;
            }
            code.limits[length] = next << (32 - length);
            length += 1;
        }
        code
    }

    /// The symbol that these 32 bits begin with, and the length of its code.
    fn symbol(&self, bits: u32) -> (usize, usize) {
        let mut length = 5; // of the shortest codes
        while u64::from(bits) >= self.limits[length] {
            length += 1; // the limit of the longest code is 2^32
        }
        let (code, index) = self.first[length];
        let offset = (bits >> (32 - length)) - code;
        (usize::from(self.symbols[index + offset as usize]), length)
    }
}

/// Decodes a string and appends it to `to`.
pub(super) fn decode(string: &[u8], to: &mut Vec<u8>) -> Result<(), InvalidBlock> {
    // The next bits, from the top down, followed by ones.
    let mut bits = u64::MAX;
    let mut available = 0;
    let mut rest = string.iter();
    loop {
        while available <= 32 {
            let Some(byte) = rest.next() else {
                break;
            };
            let shift = 56 - available;
            bits &= !(0xff << shift) | u64::from(*byte) << shift;
            available += 8;
        }
        let (symbol, length) = CODE.symbol((bits >> 32) as u32);
        if length > available {
            // Padding: less than a byte, and all ones.
            let is_padding = available < 8 && bits == u64::MAX;
            return if is_padding {
                Ok(())
            } else {
                Err(InvalidBlock)
            };
        }
        if symbol == END {
            return Err(InvalidBlock);
        }
        to.push(symbol as u8);
        bits = bits << length | ((1 << length) - 1);
        available -= length;
    }
}

/// Encodes a string, as peers do.
#[cfg(test)]
pub(super) fn encode(string: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0_u64, 0);
    let mut append = |code: u64, length: usize| {
        bits = bits << length | code;
        count += length;
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
        count
    };
    let mut pending = 0;
    for byte in string {
        let length = usize::from(LENGTHS[usize::from(*byte)]);
        let (first, index) = CODE.first[length];
        let symbols = CODE.symbols[index..].iter();
        let offset = symbols
            .take_while(|symbol| **symbol != u16::from(*byte))
            .count();
        pending = append(u64::from(first) + offset as u64, length);
    }
    if pending > 0 {
        append((1 << (8 - pending)) - 1, 8 - pending);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(string: &[u8]) -> Result<Vec<u8>, InvalidBlock> {
        let mut to = Vec::new();
        decode(string, &mut to).map(|()| to)
    }

    #[test]
    fn the_code_is_complete() {
        assert_eq!(CODE.limits[LONGEST], 1 << 32);
        let unused = |sum: f64, length: &u8| sum - 0.5_f64.powi(i32::from(*length));
        assert_eq!(LENGTHS.iter().fold(1.0, unused), 0.0);
    }

    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        let encoded = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(decoded(&encoded).unwrap(), b"www.example.com");
        assert_eq!(encode(b"www.example.com"), encoded);
        let encoded = [0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        assert_eq!(decoded(&encoded).unwrap(), b"no-cache");
    }

    #[test]
    fn wrong_padding_and_the_end_are_invalid() {
        assert_eq!(decoded(&[]), Ok(Vec::new()));
        assert_eq!(decoded(&[0b0000_0111]), Ok(b"0".to_vec()));
        assert_eq!(decoded(&[0b0000_0110]), Err(InvalidBlock), "not all ones");
        assert_eq!(decoded(&[0xff]), Err(InvalidBlock), "a whole byte");
        assert_eq!(
            decoded(&[0b0000_0111, 0xff]),
            Err(InvalidBlock),
            "more than a byte"
        );
        assert_eq!(decoded(&[0xff; 4]), Err(InvalidBlock), "the end itself");
    }

    proptest! {
        #[test]
        fn encoded_strings_are_decoded(string in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decoded(&encode(&string)), Ok(string));
        }

        #[test]
        fn what_is_decoded_is_what_would_be_encoded(
            bytes in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            if let Ok(string) = decoded(&bytes) {
                prop_assert_eq!(encode(&string), bytes);
            }
        }
    }
}
