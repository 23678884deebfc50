//! Decodes header blocks.

use serde::{Deserialize, Serialize};

use super::table::Table;
use super::{Field, huffman, integer};

/// A header block is invalid: its connection must close with COMPRESSION_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid header block")]
pub struct InvalidBlock;

/// Decodes the header blocks of a connection, all of them and in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decoder {
    table: Table,
    /// The largest size that the peer may choose for the table, in bytes.
    max_table: usize,
}

impl Decoder {
    /// Begins with a table of `max_table` bytes, which the peer may reduce.
    pub fn new(max_table: u32) -> Self {
        Self {
            table: Table::new(max_table as usize),
            max_table: max_table as usize,
        }
    }

    /// Changes the largest size of the table, once the peer has acknowledged it. A peer that does
    /// not reduce a table that is now too large may continue to use it.
    pub fn set_max_table(&mut self, max_table: u32) {
        self.max_table = max_table as usize;
    }

    /// Decodes a header block and calls `handle` with each field.
    ///
    /// # Errors
    /// If the block is invalid.
    pub fn decode(
        &mut self,
        mut block: &[u8],
        mut handle: impl FnMut(Field<'_>),
    ) -> Result<(), InvalidBlock> {
        let rest = &mut block;
        let (mut name_buffer, mut value_buffer) = (Vec::new(), Vec::new());
        let mut is_beginning = true;
        while let Some(first) = rest.first() {
            let instruction = Instruction::of(*first);
            let index = integer::decode(rest, instruction.prefix())?;
            match instruction {
                Instruction::Indexed => {
                    let (name, value) = self.table.get(index).ok_or(InvalidBlock)?;
                    handle(Field {
                        name,
                        value,
                        is_sensitive: false,
                    });
                }
                Instruction::ResizeTable if is_beginning && index <= self.max_table => {
                    self.table.resize(index);
                    continue;
                }
                Instruction::ResizeTable => return Err(InvalidBlock),
                Instruction::Literal { indexing } => {
                    name_buffer.clear();
                    value_buffer.clear();
                    let name = match index {
                        0 => string(rest, &mut name_buffer)?,
                        // A copy: inserting the field may remove the entry that has its name.
                        _ => {
                            let (name, _) = self.table.get(index).ok_or(InvalidBlock)?;
                            name_buffer.extend_from_slice(name);
                            &name_buffer
                        }
                    };
                    let value = string(rest, &mut value_buffer)?;
                    handle(Field {
                        name,
                        value,
                        is_sensitive: indexing == Indexing::Never,
                    });
                    if indexing == Indexing::Incremental {
                        self.table.insert(name, value);
                    }
                }
            }
            is_beginning = false;
        }
        Ok(())
    }
}

/// What the first bits of an instruction mean.
#[derive(Clone, Copy)]
enum Instruction {
    Indexed,
    Literal { indexing: Indexing },
    ResizeTable,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Indexing {
    Incremental,
    Without,
    Never,
}

impl Instruction {
    fn of(first: u8) -> Self {
        let literal = |indexing| Self::Literal { indexing };
        match first {
            0x80.. => Self::Indexed,
            0x40.. => literal(Indexing::Incremental),
            0x20.. => Self::ResizeTable,
            0x10.. => literal(Indexing::Never),
            _ => literal(Indexing::Without),
        }
    }

    /// The number of bits that the index or size has in the first byte.
    fn prefix(self) -> u32 {
        match self {
            Self::Indexed => 7,
            Self::Literal {
                indexing: Indexing::Incremental,
            } => 6,
            Self::ResizeTable => 5,
            Self::Literal { .. } => 4,
        }
    }
}

/// Removes a string from `rest`; `buffer` has the decoded string if it is compressed.
fn string<'a, 'b: 'a>(
    rest: &mut &'b [u8],
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], InvalidBlock> {
    let is_compressed = rest.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = integer::decode(rest, 7)?;
    let (string, after) = rest.split_at_checked(length).ok_or(InvalidBlock)?;
    *rest = after;
    if !is_compressed {
        return Ok(string);
    }
    huffman::decode(string, buffer)?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &str) -> Result<String, InvalidBlock> {
        let bytes: Vec<u8> = block
            .split_whitespace()
            .flat_map(|word| (0..word.len()).step_by(2).map(move |i| &word[i..i + 2]))
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let mut list = String::new();
        decoder.decode(&bytes, |field| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            let sensitive = if field.is_sensitive { " (never)" } else { "" };
            list += &format!("{}={}{sensitive}\n", text(field.name), text(field.value));
        })?;
        Ok(list)
    }

    #[test]
    fn the_requests_of_the_rfc_are_decoded() {
        let mut decoder = Decoder::new(4096);
        let first = ":method=GET\n:scheme=http\n:path=/\n:authority=www.example.com\n";
        for (block, list) in [
            (
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                first.to_owned(),
            ),
            (
                "8286 84be 5886 a8eb 1064 9cbf",
                format!("{first}cache-control=no-cache\n"),
            ),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                ":method=GET\n:scheme=https\n:path=/index.html\n:authority=www.example.com\n\
                 custom-key=custom-value\n"
                    .to_owned(),
            ),
        ] {
            assert_eq!(decode(&mut decoder, block), Ok(list));
        }
    }

    #[test]
    fn the_responses_of_the_rfc_are_decoded_with_evictions() {
        let mut decoder = Decoder::new(256);
        let rest = "location=https://www.example.com\n";
        let date = "date=Mon, 21 Oct 2013 20:13:21 GMT\n";
        for (block, list) in [
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
                 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                format!(":status=302\ncache-control=private\n{date}{rest}"),
            ),
            (
                "4883 640e ffc1 c0bf",
                format!(":status=307\ncache-control=private\n{date}{rest}"),
            ),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
                 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
                 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                ":status=200\ncache-control=private\ndate=Mon, 21 Oct 2013 20:13:22 GMT\n\
                 location=https://www.example.com\ncontent-encoding=gzip\n\
                 set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n"
                    .to_owned(),
            ),
        ] {
            assert_eq!(decode(&mut decoder, block), Ok(list));
        }
    }

    #[test]
    fn sensitive_fields_are_reported_and_not_stored() {
        let mut decoder = Decoder::new(4096);
        let list = decode(&mut decoder, "1003 6162 6301 78");
        assert_eq!(list, Ok("abc=x (never)\n".to_owned()));
        assert_eq!(decode(&mut decoder, "be"), Err(InvalidBlock));
    }

    #[test]
    fn tables_are_resized_only_at_the_beginning_and_within_the_limit() {
        let mut decoder = Decoder::new(4096);
        assert_eq!(
            decode(&mut decoder, "20 3f e1 1f 82"),
            Ok(":method=GET\n".to_owned())
        );
        assert_eq!(decode(&mut decoder, "82 20"), Err(InvalidBlock));
        assert_eq!(
            decode(&mut decoder, "3f e2 1f"),
            Err(InvalidBlock),
            "4,097 bytes"
        );
        decoder.set_max_table(0);
        assert_eq!(decode(&mut decoder, "21"), Err(InvalidBlock));
        assert_eq!(decode(&mut decoder, "20"), Ok(String::new()));
        assert_eq!(
            decode(&mut decoder, "40 01 61 01 62"),
            Ok("a=b\n".to_owned())
        );
        assert_eq!(
            decode(&mut decoder, "be"),
            Err(InvalidBlock),
            "nothing is stored"
        );
    }

    #[test]
    fn references_and_strings_beyond_the_end_are_invalid() {
        for block in [
            "80",
            "be",
            "7f 00",
            "00",
            "00 03 61",
            "00 01 61 05 62",
            "0f",
            "00 81 ff",
        ] {
            assert_eq!(
                decode(&mut Decoder::new(4096), block),
                Err(InvalidBlock),
                "{block}"
            );
        }
    }
}
