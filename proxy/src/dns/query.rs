//! A query, as far as the proxy looks at it. What it does not understand it leaves to the name server.

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// RFC 1035 section 4.1.1.
const HEADER: usize = 12;
/// The response bit, in the third byte.
const RESPONSE: u8 = 0x80;
/// The response code, in the fourth byte.
const CODE: u8 = 0x0f;
/// What is asked for over UDP without EDNS, RFC 1035 section 4.2.1.
const PLAIN_UDP_SIZE: u16 = 512;
/// What we say that we take over UDP: what fits into any path (DNS flag day 2020).
const OWN_UDP_SIZE: u16 = 1232;

/// A query.
#[derive(Debug)]
pub(super) struct Query {
    bytes: Vec<u8>,
    /// `None` when this is no ordinary query for one name, such as an update.
    pub(super) question: Option<Question>,
    /// Where the question section ends.
    question_end: usize,
}

/// Why bytes are no query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Not even the beginning of one, or an answer: whoever sent it expects none.
    Ignored,
    /// It is refused in these words.
    Refused(Vec<u8>),
}

impl Query {
    /// Reads header and question.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER || bytes[2] & RESPONSE != 0 {
            return Err(Malformed::Ignored);
        }
        let opcode = OpCode::from_u8(bytes[2] >> 3 & 0x0f);
        let questions = u16::from_be_bytes([bytes[4], bytes[5]]);
        let foreign = Self { bytes: bytes.to_vec(), question: None, question_end: HEADER };
        match (opcode, questions) {
            (OpCode::Query, 1) => {}
            // A query without a question asks for a cookie (RFC 7873 section 5.4); more than one is an error (RFC 9619).
            (OpCode::Query, 2..) => return Err(Malformed::Refused(refusal(bytes))),
            _ => return Ok(foreign),
        }
        let mut decoder = BinDecoder::new(bytes).clone(HEADER as u16);
        match Question::read(&mut decoder) {
            Ok(question) if !is_compressed(&bytes[HEADER..]) => {
                Ok(Self { question: Some(question), question_end: decoder.index(), ..foreign })
            }
            _ => Err(Malformed::Refused(refusal(bytes))),
        }
    }

    /// The whole query.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its id.
    pub(super) fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The same under another id.
    pub(super) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// Whether this is an answer to the query that was sent under `id`. An answer may leave the question out.
    pub(super) fn is_answered_by(&self, answer: &[u8], id: u16) -> bool {
        let question = &self.bytes[HEADER..self.question_end];
        answer.len() >= HEADER
            && answer[..2] == id.to_be_bytes()
            && answer[2] & RESPONSE != 0
            && (answer[4..6] == [0, 0]
                || answer.get(HEADER..self.question_end).is_some_and(|q| q.eq_ignore_ascii_case(question)))
    }

    /// An answer without records; the caller puts them in. A query whose end cannot be understood is refused instead.
    pub(super) fn answer(&self, code: ResponseCode) -> Message {
        let whole = Message::from_vec(&self.bytes);
        let (metadata, code, edns) = match whole {
            Ok(whole) if whole.edns.as_ref().is_some_and(|e| e.version() > 0) => {
                (whole.metadata, ResponseCode::BADVERS, whole.edns)
            }
            Ok(whole) => (whole.metadata, code, whole.edns),
            Err(_) => {
                let opcode = OpCode::from_u8(self.bytes[2] >> 3 & 0x0f);
                (Metadata::new(self.id(), MessageType::Query, opcode), ResponseCode::FormErr, None)
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

    /// That no name server has answered.
    pub(super) fn failure(&self) -> Vec<u8> {
        encode(&self.answer(ResponseCode::ServFail), usize::MAX).unwrap_or_else(|| {
            let mut bytes = refusal(&self.bytes);
            bytes[3] = bytes[3] & !CODE | ResponseCode::ServFail.low();
            bytes
        })
    }

    /// How long an answer over UDP may be.
    pub(super) fn udp_size(&self) -> usize {
        let edns = Message::from_vec(&self.bytes).ok().and_then(|m| m.edns);
        usize::from(edns.map_or(PLAIN_UDP_SIZE, |e| e.max_payload().max(PLAIN_UDP_SIZE)))
    }
}

/// Whether a name has a pointer (RFC 1035 section 4.1.4). In the first name of a message it can only lead into the header.
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

/// The bytes of an answer. One that is too long goes without its records and says so, so that it is asked for over TCP.
pub(super) fn encode(answer: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= limit { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

/// Where the name is known to the mesh, a name server that does not know it must not deny that it exists: only that it
/// has records of that type.
pub(super) fn name_exists(answer: &mut [u8]) {
    if let Some(flags) = answer.get_mut(3)
        && *flags & CODE == ResponseCode::NXDomain.low()
    {
        *flags &= !CODE;
    }
}

/// The response code of an answer, for the log.
pub(super) fn response_code(answer: &[u8]) -> ResponseCode {
    ResponseCode::from_low(answer.get(3).copied().unwrap_or(0) & CODE)
}

/// A header that says "format error" to these bytes, which are at least a header.
pub(super) fn refusal(bytes: &[u8]) -> Vec<u8> {
    let recursion_and_opcode = bytes[2] & 0x79;
    let format_error = 0x80 | ResponseCode::FormErr.low();
    let mut header = vec![bytes[0], bytes[1], RESPONSE | recursion_and_opcode, format_error];
    header.resize(HEADER, 0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    fn query() -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(Name::from_ascii("Server.example.").unwrap(), RecordType::A));
        message
    }

    #[test]
    fn what_is_no_query_is_ignored_or_refused() {
        let good = query().to_vec().unwrap();
        assert_eq!(Query::parse(&good).unwrap().id(), 0x1234);
        for n in 0..HEADER {
            assert_eq!(Query::parse(&good[..n]).unwrap_err(), Malformed::Ignored);
        }
        for n in HEADER..good.len() {
            let Err(Malformed::Refused(refusal)) = Query::parse(&good[..n]) else { panic!("{n} bytes were taken") };
            assert_eq!((&refusal[..2], response_code(&refusal)), (&good[..2], ResponseCode::FormErr));
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Query::parse(&bytes)
        };
        assert_eq!(with(2, 0x81).unwrap_err(), Malformed::Ignored, "an answer");
        assert!(matches!(with(5, 2), Err(Malformed::Refused(_))), "two questions");
        assert!(with(5, 0).unwrap().question.is_none(), "a query for a cookie");
        assert!(with(2, 5 << 3).unwrap().question.is_none(), "an update");
        let pointer = [&good[..HEADER], b"\x01a\xc0\x00", &[0; 5]].concat();
        assert!(matches!(Query::parse(&pointer), Err(Malformed::Refused(_))), "a name that goes on in the header");
    }

    #[test]
    fn only_its_own_answer_is_taken() {
        let asked = Query::parse(&query().to_vec().unwrap()).unwrap();
        let mut answer = asked.failure();
        assert!(asked.is_answered_by(&answer, 0x1234));
        assert!(!asked.is_answered_by(&answer, 0x1235), "another id");
        assert!(!asked.is_answered_by(asked.bytes(), 0x1234), "the question itself");
        assert!(!asked.is_answered_by(&answer[..11], 0x1234));
        answer[14] ^= 1;
        assert!(!asked.is_answered_by(&answer, 0x1234), "another name");
        answer[4..6].fill(0);
        assert!(asked.is_answered_by(&answer, 0x1234), "no question at all");
        assert_eq!(&asked.with_id(7)[..2], &[0, 7]);
        assert_eq!(asked.with_id(7)[2..], asked.bytes()[2..]);
    }

    #[test]
    fn a_failure_says_what_was_asked_and_answers_edns_with_edns() {
        let plain = Query::parse(&query().to_vec().unwrap()).unwrap();
        let failure = Message::from_vec(&plain.failure()).unwrap();
        assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
        assert!(failure.metadata.recursion_desired && failure.edns.is_none());
        assert_eq!(failure.queries, query().queries);
        assert_eq!(plain.udp_size(), 512);
        let mut extended = query();
        extended.edns = Some(hickory_proto::op::Edns::new());
        extended.edns.as_mut().unwrap().set_max_payload(4096);
        let asked = Query::parse(&extended.to_vec().unwrap()).unwrap();
        assert_eq!(asked.udp_size(), 4096);
        assert!(Message::from_vec(&asked.failure()).unwrap().edns.is_some());
        extended.edns.as_mut().unwrap().set_version(1);
        let asked = Query::parse(&extended.to_vec().unwrap()).unwrap();
        let answer = Message::from_vec(&asked.failure()).unwrap();
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn a_name_that_exists_is_not_denied() {
        let mut answer = Query::parse(&query().to_vec().unwrap()).unwrap().failure();
        name_exists(&mut answer);
        assert_eq!(response_code(&answer), ResponseCode::ServFail, "other errors stay");
        answer[3] = 0x83;
        name_exists(&mut answer);
        assert_eq!(answer[3], 0x80);
        name_exists(&mut []);
    }

    proptest! {
        #[test]
        fn any_bytes_harm_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..600), answer in proptest::collection::vec(any::<u8>(), 0..40)) {
            match Query::parse(&bytes) {
                Ok(query) => {
                    query.failure();
                    query.udp_size();
                    query.is_answered_by(&answer, 1);
                }
                Err(Malformed::Refused(refusal)) => prop_assert_eq!(refusal.len(), HEADER),
                Err(Malformed::Ignored) => {}
            }
        }

        /// As the last, but with a header that is taken, so that the rest is looked at.
        #[test]
        fn any_bytes_after_a_good_header_harm_nobody(counts in any::<[u8; 3]>(), rest in proptest::collection::vec(any::<u8>(), 0..600)) {
            let header = [0, 1, 1, 0, 0, 1, 0, counts[0] & 3, 0, counts[1] & 3, 0, counts[2] & 3];
            if let Ok(query) = Query::parse(&[&header[..], &rest].concat()) {
                let failure = query.failure();
                prop_assert!(query.is_answered_by(&failure, 1));
                query.udp_size();
            }
        }
    }
}
