//! The part of a query that the proxy parses. Unsupported queries are left to the name server.

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use crate::message::{CODE, HEADER, RESPONSE, is_truncated, questions, records};

/// Maximum size of an answer over UDP without EDNS, RFC 1035 section 4.2.1.
const PLAIN_UDP_SIZE: u16 = 512;
/// UDP size that the proxy announces: it avoids fragmentation on any path (DNS flag day 2020).
pub(super) const OWN_UDP_SIZE: u16 = 1232;
/// Maximum size of the proxy's own answers over UDP, whatever the client accepts: the largest
/// common EDNS size.
const MAX_UDP_SIZE: u16 = 4096;
/// Length of what follows the name in a question, RFC 1035 section 4.1.2.
const TYPE_AND_CLASS: usize = 4;
/// Length of an OPT record without options, RFC 6891 section 6.1.2.
const OPT: u16 = 11;

/// A received query.
#[derive(Debug, Clone)]
pub(super) struct Query {
    bytes: Vec<u8>,
    /// The question; `None` unless this is a standard query for one name.
    pub(super) question: Option<Question>,
    /// End of the question section.
    question_end: usize,
}

/// A message is not a valid query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// A truncated header or an answer; the sender expects no answer.
    Ignore,
    /// A malformed query, to be answered with this message.
    Refuse(Vec<u8>),
}

impl Query {
    /// Parses the header and the question.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, QueryError> {
        if bytes.len() < HEADER || bytes[2] & RESPONSE != 0 {
            return Err(QueryError::Ignore);
        }
        let opcode = OpCode::from_u8(bytes[2] >> 3 & 0x0f);
        let questions = u16::from_be_bytes([bytes[4], bytes[5]]);
        let unsupported = Self {
            bytes: bytes.to_vec(),
            question: None,
            question_end: HEADER,
        };
        match (opcode, questions) {
            (OpCode::Query, 1) => {}
            // No question requests a cookie (RFC 7873 section 5.4); more than one is an error (RFC
            // 9619).
            (OpCode::Query, 2..) => return Err(QueryError::Refuse(refusal(bytes))),
            _ => return Ok(unsupported),
        }
        let mut decoder = BinDecoder::new(bytes).clone(HEADER as u16);
        match Question::read(&mut decoder) {
            Ok(question) if !is_compressed(&bytes[HEADER..]) => Ok(Self {
                question: Some(question),
                question_end: decoder.index(),
                ..unsupported
            }),
            _ => Err(QueryError::Refuse(refusal(bytes))),
        }
    }

    /// The bytes of the query.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The id of the query.
    pub(super) fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The bytes of the query with another id.
    pub(super) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// What the answer depends on: the query without its id and without the case of its name.
    /// `None` if its answer must not be used for other queries: it has several messages, or
    /// depends on more than the question and EDNS.
    pub(super) fn cache_key(&self) -> Option<Vec<u8>> {
        let kind = u16::from(self.question.as_ref()?.query_type());
        let is_of_one = match &records(&self.bytes)?[..] {
            [] => self.question_end == self.bytes.len(),
            [edns] => edns.kind == RecordType::OPT && edns.data.end == self.bytes.len(),
            _ => false,
        };
        // RFC 6895 section 3.1: the types 128 to 255 are no types of records.
        if !is_of_one || (128..=255).contains(&kind) {
            return None;
        }
        let mut key = self.with_id(0);
        key[HEADER..self.name_end()].make_ascii_lowercase();
        Some(key)
    }

    /// The end of the name in the question.
    fn name_end(&self) -> usize {
        self.question_end.saturating_sub(TYPE_AND_CLASS).max(HEADER)
    }

    /// Whether `answer` answers this query when it was sent with `id`. An answer may omit the
    /// question.
    pub(super) fn is_answered_by(&self, answer: &[u8], id: u16) -> bool {
        answer.len() >= HEADER
            && answer[..2] == id.to_be_bytes()
            && answer[2] & RESPONSE != 0
            && (questions(answer) == 0 || self.is_question_of(answer))
    }

    /// Whether a message begins with the question of this one, in any case.
    fn is_question_of(&self, message: &[u8]) -> bool {
        let (name, rest) = (HEADER..self.name_end(), self.name_end()..self.question_end);
        message
            .get(name.clone())
            .is_some_and(|n| n.eq_ignore_ascii_case(&self.bytes[name]))
            && message.get(rest.clone()) == Some(&self.bytes[rest])
    }

    /// Makes the answer to an equal query one to this query: its id, and its name as the client
    /// wrote it.
    pub(super) fn adopt(&self, answer: &mut [u8]) {
        answer[..2].copy_from_slice(&self.bytes[..2]);
        if questions(answer) > 0 && self.is_question_of(answer) {
            let question = HEADER..self.question_end;
            answer[question.clone()].copy_from_slice(&self.bytes[question]);
        }
    }

    /// Builds an answer without records, which the caller adds. A query that cannot be parsed
    /// completely gets a format error.
    pub(super) fn answer(&self, code: ResponseCode) -> Message {
        let message = Message::from_vec(&self.bytes);
        let (metadata, code, edns) = match message {
            Ok(message) if message.edns.as_ref().is_some_and(|e| e.version() > 0) => {
                (message.metadata, ResponseCode::BADVERS, message.edns)
            }
            Ok(message) => (message.metadata, code, message.edns),
            Err(_) => {
                let opcode = OpCode::from_u8(self.bytes[2] >> 3 & 0x0f);
                (
                    Metadata::new(self.id(), MessageType::Query, opcode),
                    ResponseCode::FormErr,
                    None,
                )
            }
        };
        let mut answer = Message::response(self.id(), metadata.op_code);
        answer.metadata = Metadata::response_from_request(&metadata);
        answer.metadata.id = self.id();
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = code;
        answer.add_queries(self.question.iter().cloned());
        if edns.is_some() {
            let mut own = hickory_proto::op::Edns::new();
            own.set_max_payload(OWN_UDP_SIZE);
            answer.set_edns(own);
        }
        answer
    }

    /// Builds the answer "server failure".
    pub(super) fn failure(&self) -> Vec<u8> {
        encode(&self.answer(ResponseCode::ServFail), usize::MAX).unwrap_or_else(|| {
            let mut bytes = refusal(&self.bytes);
            bytes[3] = bytes[3] & !CODE | ResponseCode::ServFail.low();
            bytes
        })
    }

    /// Maximum size of an answer over UDP.
    pub(super) fn udp_size(&self) -> usize {
        let edns = Message::from_vec(&self.bytes).ok().and_then(|m| m.edns);
        let size = edns.map_or(PLAIN_UDP_SIZE, |e| e.max_payload());
        usize::from(size.clamp(PLAIN_UDP_SIZE, MAX_UDP_SIZE))
    }
}

/// Whether a name has a compression pointer (RFC 1035 section 4.1.4). In the first name of a
/// message it could only point into the header.
fn is_compressed(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&length, after)) = rest.split_first() {
        match length {
            0 => return false,
            1..=63 => rest = after.get(usize::from(length)..).unwrap_or_default(),
            _ => return true,
        }
    }
    false
}

/// Encodes an answer. One longer than `limit`, or than a message can be, has the records that fit
/// and the truncation bit, so that the client can use them or retry over TCP.
pub(super) fn encode(answer: &Message, limit: usize) -> Option<Vec<u8>> {
    let limit = u16::try_from(limit).unwrap_or(u16::MAX);
    let bytes = encode_within(answer, limit)?;
    if !is_truncated(&bytes) {
        return Some(bytes);
    }
    let mut part = answer.clone();
    let edns = part.edns.take();
    let room = if edns.is_some() {
        limit.saturating_sub(OPT)
    } else {
        limit
    };
    let header: [u8; HEADER] = *encode_within(&part, room)?.first_chunk()?;
    let fitting = u16::from_be_bytes([header[6], header[7]]);
    part.answers.truncate(usize::from(fitting));
    part.metadata.truncation = true;
    part.edns = edns;
    encode_within(&part, limit)
}

/// Encodes as many records as fit; sets the truncation bit if some do not.
fn encode_within(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

/// Builds the answer "format error" to a message of at least a header.
pub(super) fn refusal(bytes: &[u8]) -> Vec<u8> {
    let recursion_and_opcode = bytes[2] & 0x79;
    let format_error = 0x80 | ResponseCode::FormErr.low();
    let mut header = vec![
        bytes[0],
        bytes[1],
        RESPONSE | recursion_and_opcode,
        format_error,
    ];
    header.resize(HEADER, 0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{is_complete, response_code};
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    fn query() -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(
            Name::from_ascii("Server.example.").unwrap(),
            RecordType::A,
        ));
        message
    }

    #[test]
    fn invalid_queries_are_ignored_or_refused() {
        let good = query().to_vec().unwrap();
        assert_eq!(Query::parse(&good).unwrap().id(), 0x1234);
        for n in 0..HEADER {
            assert_eq!(Query::parse(&good[..n]).unwrap_err(), QueryError::Ignore);
        }
        for n in HEADER..good.len() {
            let Err(QueryError::Refuse(refusal)) = Query::parse(&good[..n]) else {
                panic!("{n} bytes were accepted")
            };
            assert_eq!(
                (&refusal[..2], response_code(&refusal)),
                (&good[..2], ResponseCode::FormErr)
            );
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Query::parse(&bytes)
        };
        assert_eq!(with(2, 0x81).unwrap_err(), QueryError::Ignore, "an answer");
        assert!(
            matches!(with(5, 2), Err(QueryError::Refuse(_))),
            "two questions"
        );
        assert!(
            with(5, 0).unwrap().question.is_none(),
            "a query for a cookie"
        );
        assert!(with(2, 5 << 3).unwrap().question.is_none(), "an update");
        let pointer = [&good[..HEADER], b"\x01a\xc0\x00", &[0; 5]].concat();
        assert!(
            matches!(Query::parse(&pointer), Err(QueryError::Refuse(_))),
            "a name that points into the header"
        );
    }

    #[test]
    fn only_the_matching_answer_is_accepted() {
        let parsed = Query::parse(&query().to_vec().unwrap()).unwrap();
        let mut answer = parsed.failure();
        assert!(parsed.is_answered_by(&answer, 0x1234));
        assert!(!parsed.is_answered_by(&answer, 0x1235), "another id");
        assert!(
            !parsed.is_answered_by(parsed.bytes(), 0x1234),
            "the question itself"
        );
        assert!(!parsed.is_answered_by(&answer[..11], 0x1234));
        answer[14] ^= 1;
        assert!(!parsed.is_answered_by(&answer, 0x1234), "another name");
        answer[4..6].fill(0);
        assert!(parsed.is_answered_by(&answer, 0x1234), "no question");
        assert_eq!(&parsed.with_id(7)[..2], &[0, 7]);
        assert_eq!(parsed.with_id(7)[2..], parsed.bytes()[2..]);
    }

    #[test]
    fn a_failure_repeats_the_question_and_answers_edns_with_edns() {
        let plain = Query::parse(&query().to_vec().unwrap()).unwrap();
        let failure = Message::from_vec(&plain.failure()).unwrap();
        assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
        assert!(failure.metadata.recursion_desired && failure.edns.is_none());
        assert_eq!(failure.queries, query().queries);
        assert_eq!(plain.udp_size(), 512);
        let mut extended = query();
        extended.edns = Some(hickory_proto::op::Edns::new());
        extended.edns.as_mut().unwrap().set_max_payload(4096);
        let parsed = Query::parse(&extended.to_vec().unwrap()).unwrap();
        assert_eq!(parsed.udp_size(), 4096);
        extended.edns.as_mut().unwrap().set_max_payload(65_535);
        let huge = Query::parse(&extended.to_vec().unwrap()).unwrap();
        assert_eq!(huge.udp_size(), 4096);
        assert!(Message::from_vec(&parsed.failure()).unwrap().edns.is_some());
        extended.edns.as_mut().unwrap().set_version(1);
        let parsed = Query::parse(&extended.to_vec().unwrap()).unwrap();
        let answer = Message::from_vec(&parsed.failure()).unwrap();
        assert_eq!(
            u16::from(answer.metadata.response_code),
            u16::from(ResponseCode::BADVERS)
        );
    }

    /// Bytes of a query with EDNS, for this name and type.
    fn extended(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
        message.set_edns(hickory_proto::op::Edns::new());
        message.to_vec().unwrap()
    }

    fn key_of(bytes: &[u8]) -> Option<Vec<u8>> {
        Query::parse(bytes).ok()?.cache_key()
    }

    #[test]
    fn queries_whose_answers_are_not_only_theirs_have_a_key() {
        use RecordType::{A, ANY, AXFR, HTTPS, SRV, TXT};
        for kind in [A, SRV, HTTPS, TXT, RecordType::Unknown(65_000)] {
            assert!(key_of(&extended("a.example.", kind)).is_some(), "{kind}");
        }
        for kind in [ANY, AXFR, RecordType::IXFR] {
            assert_eq!(key_of(&extended("a.example.", kind)), None, "{kind}");
        }
        let bytes = extended("a.example.", A);
        assert_eq!(key_of(&[&bytes[..], &[0]].concat()), None, "more behind it");
        let mut signed = bytes.clone();
        signed[11] = 2; // EDNS, and a signature (TSIG)
        signed.extend([0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(key_of(&signed), None, "signed");
        let mut notify = bytes.clone();
        notify[2] |= 4 << 3;
        assert_eq!(key_of(&notify), None, "a notification");
    }

    #[test]
    fn types_that_differ_like_the_case_of_a_letter_differ() {
        let of_type = |kind: u16| extended("a.example.", kind.into());
        assert_ne!(key_of(&of_type(65)), key_of(&of_type(97)));
        let mut answer = Query::parse(&of_type(97)).unwrap().failure();
        let query = Query::parse(&of_type(65)).unwrap();
        assert!(!query.is_answered_by(&answer, 1));
        let before = answer.clone();
        query.adopt(&mut answer);
        assert_eq!(answer, before, "not its question");
    }

    proptest! {
        /// The bits RD, CD and DO, the EDNS size and options are some of these bytes.
        #[test]
        fn only_the_id_and_the_case_of_the_name_may_differ_for_the_same_answer(
            at in any::<prop::sample::Index>(),
            change in 1..=255_u8,
        ) {
            let bytes = extended("Mixed.Example.", RecordType::A);
            let mut other = bytes.clone();
            let at = at.index(bytes.len());
            other[at] ^= change;
            let is_letter = (13..26).contains(&at) && bytes[at].is_ascii_alphabetic();
            let may_differ = at < 2 || is_letter && change == 0x20;
            prop_assert_eq!(key_of(&bytes) == key_of(&other), may_differ);
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            answer in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            match Query::parse(&bytes) {
                Ok(query) => {
                    query.failure();
                    query.udp_size();
                    query.is_answered_by(&answer, 1);
                    query.cache_key();
                    is_complete(&answer);
                }
                Err(QueryError::Refuse(refusal)) => prop_assert_eq!(refusal.len(), HEADER),
                Err(QueryError::Ignore) => {}
            }
        }

        /// Like the previous test, with a valid header, so that the rest is parsed.
        #[test]
        fn arbitrary_bytes_after_a_valid_header_cause_no_panic(
            counts in any::<[u8; 3]>(),
            rest in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let header = [0, 1, 1, 0, 0, 1, 0, counts[0] & 3, 0, counts[1] & 3, 0, counts[2] & 3];
            if let Ok(query) = Query::parse(&[&header[..], &rest].concat()) {
                let failure = query.failure();
                prop_assert!(query.is_answered_by(&failure, 1));
                query.udp_size();
            }
        }
    }
}
