//! The bytes of a message: its header, and where its records are. Answers of name servers are
//! passed on as they are, so they are not decoded and encoded again.

use std::ops::Range;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// Length of the message header, RFC 1035 section 4.1.1.
pub(super) const HEADER: usize = 12;
/// Response bit in the third byte.
pub(super) const RESPONSE: u8 = 0x80;
/// Truncation bit in the third byte.
pub(super) const TRUNCATED: u8 = 0x02;
/// Mask of the response code in the fourth byte.
pub(super) const CODE: u8 = 0x0f;

/// A section of records, RFC 1035 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// Where a record is in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordPlace {
    pub(super) section: Section,
    pub(super) kind: RecordType,
    /// Its name, possibly compressed.
    pub(super) name: Range<usize>,
    /// Its data, which its length and its TTL precede.
    pub(super) data: Range<usize>,
}

impl RecordPlace {
    /// Where its TTL is: four bytes, in seconds. Those of an OPT record are flags instead.
    pub(super) fn ttl(&self) -> Range<usize> {
        self.data.start - 6..self.data.start - 2
    }

    /// Its TTL, in seconds.
    pub(super) fn ttl_in(&self, message: &[u8]) -> u32 {
        read_u32(message, self.ttl().start)
    }
}

/// The number at an offset; zero behind the end.
fn read_u32(message: &[u8], at: usize) -> u32 {
    let bytes = message.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The number at an offset, if the message is long enough.
fn read_u16(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// Number of questions that the header declares; zero without a header.
pub(super) fn questions(message: &[u8]) -> u16 {
    read_u16(message, 4).unwrap_or(0)
}

/// Finds the records of a message; `None` if it ends before the last one that its header declares.
pub(super) fn records(message: &[u8]) -> Option<Vec<RecordPlace>> {
    let mut at = HEADER;
    for _ in 0..read_u16(message, 4)? {
        at = name_end(message, at)? + 4; // type and class
    }
    let mut records = Vec::new();
    for (section, count) in [
        (Section::Answer, read_u16(message, 6)?),
        (Section::Authority, read_u16(message, 8)?),
        (Section::Additional, read_u16(message, 10)?),
    ] {
        for _ in 0..count {
            let record = record(message, at, section)?;
            at = record.data.end;
            records.push(record);
        }
    }
    (at <= message.len()).then_some(records)
}

/// Finds the record that starts at an offset: name, type, class, TTL and length of the data, RFC
/// 1035 section 4.1.3.
fn record(message: &[u8], at: usize, section: Section) -> Option<RecordPlace> {
    let end = name_end(message, at)?;
    let kind = read_u16(message, end)?.into();
    let data = end + 10;
    let data = data..data + usize::from(read_u16(message, data - 2)?);
    (data.end <= message.len()).then_some(RecordPlace {
        section,
        kind,
        name: at..end,
        data,
    })
}

/// The end of the name at an offset; `None` if it does not end.
fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(length),
            // A pointer ends the name. Other label types do not exist (RFC 6891 section 5).
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// Whether the sections of an answer are as long as its header declares. An answer that was cut or
/// damaged on its way is not, unless it is marked as truncated.
pub(super) fn is_complete(answer: &[u8]) -> bool {
    answer.len() >= HEADER && (is_truncated(answer) || records(answer).is_some())
}

/// Whether an answer is truncated.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// The response code of an answer, without the bits that EDNS adds.
pub(super) fn response_code(answer: &[u8]) -> ResponseCode {
    ResponseCode::from_low(answer.get(3).copied().unwrap_or(0) & CODE)
}

/// Replaces NXDOMAIN by "no records of that type" in the answer of a name server, for a name that
/// exists in the mesh.
pub(super) fn clear_nxdomain(answer: &mut [u8]) {
    if let Some(flags) = answer.get_mut(3)
        && *flags & CODE == ResponseCode::NXDomain.low()
    {
        *flags &= !CODE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, Message, OpCode, Query as Question};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record};

    /// An answer with two records in the answer section, one in the authority section, and EDNS.
    fn answer() -> Vec<u8> {
        let name = Name::from_ascii("server.example.").unwrap();
        let mut answer = Message::response(1, OpCode::Query);
        answer.add_query(Question::query(name.clone(), RecordType::A));
        let record = Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 1].into())));
        answer.add_answers([record.clone(), record.clone()]);
        answer.add_authority(record);
        answer.set_edns(Edns::new());
        answer.to_vec().unwrap()
    }

    #[test]
    fn records_are_found_with_their_ttl_and_data() {
        let bytes = answer();
        let records = records(&bytes).unwrap();
        let sections = records.iter().map(|r| (r.section, r.kind));
        let address = |section| (section, RecordType::A);
        assert!(sections.eq([
            address(Section::Answer),
            address(Section::Answer),
            address(Section::Authority),
            (Section::Additional, RecordType::OPT),
        ]));
        for record in &records[..3] {
            assert_eq!(record.ttl_in(&bytes), 60);
            assert_eq!(bytes[record.data.clone()], [192, 0, 2, 1]);
        }
        assert_eq!(records[3].data, bytes.len()..bytes.len());
    }

    #[test]
    fn a_damaged_answer_is_not_complete() {
        let whole = answer();
        assert!(is_complete(&whole));
        assert!(
            is_complete(&[&whole[..], b"more"].concat()),
            "something behind it"
        );
        for length in 0..whole.len() {
            assert!(!is_complete(&whole[..length]), "{length} bytes");
            let mut cut = whole[..length].to_vec();
            if length >= HEADER {
                cut[2] |= TRUNCATED;
                assert!(is_complete(&cut), "{length} bytes, marked as truncated");
            }
        }
        let mut endless = whole.clone();
        endless[HEADER] = 0x80;
        assert!(!is_complete(&endless), "no known type of label");
    }

    #[test]
    fn nxdomain_is_cleared_for_existing_names() {
        let mut answer = answer();
        answer[3] = 0x82;
        clear_nxdomain(&mut answer);
        let code = response_code(&answer);
        assert_eq!(code, ResponseCode::ServFail, "other errors are kept");
        answer[3] = 0x83;
        clear_nxdomain(&mut answer);
        assert_eq!(answer[3], 0x80);
        clear_nxdomain(&mut []);
    }
}
