//! Tests of what is known of the answer to a query.

use super::*;
use hickory_proto::op::{Edns, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record};
use proptest::prelude::*;

const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);
const MAX_NEGATIVE: Duration = Duration::from_secs(100);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(id: u16, of: &str) -> Query {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(name(of), RecordType::A));
    Query::parse(&message.to_vec().unwrap()).unwrap()
}

fn address(last: u8, ttl: u32) -> Record {
    Record::from_rdata(
        name("a.example."),
        ttl,
        RData::A(A([192, 0, 2, last].into())),
    )
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("ns.example."), name("x.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(soa))
}

/// An answer to a query for `a.example.` with these records.
fn message(code: ResponseCode, answers: Vec<Record>, authority: Vec<Record>) -> Message {
    let mut message = Message::response(7, OpCode::Query);
    message.metadata.response_code = code;
    message.add_query(Question::query(name("a.example."), RecordType::A));
    message.add_answers(answers);
    message.add_authorities(authority);
    message
}

fn parsed(message: &Message) -> UpstreamAnswer {
    let bytes = message.to_vec().unwrap();
    UpstreamAnswer::new(&query(7, "a.example."), bytes, FROM, MAX_NEGATIVE)
}

fn addresses(ttl: u32) -> Result<UpstreamAnswer, String> {
    Ok(parsed(&message(
        ResponseCode::NoError,
        vec![address(1, ttl)],
        vec![],
    )))
}

fn failed() -> Result<UpstreamAnswer, String> {
    Err("no answer".to_owned())
}

fn server_failure() -> Result<UpstreamAnswer, String> {
    Ok(parsed(&message(ResponseCode::ServFail, vec![], vec![])))
}

/// The TTLs in an answer, or why there is none.
fn ttls(answer: Result<Reply, String>) -> Result<Vec<u32>, String> {
    let bytes = answer?.to(&query(9, "a.example."));
    let message = Message::from_vec(&bytes).unwrap();
    Ok(message.answers.iter().map(|r| r.ttl).collect())
}

fn after(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn an_answer_is_used_until_the_first_of_its_records_expires() {
    use ResponseCode::{NXDomain, NoError, Refused, ServFail};
    let seconds = |message: &Message| parsed(message).ttl.map(|ttl| ttl.as_secs());
    let alias = || Record::from_rdata(name("a.example."), 40, RData::CNAME(CNAME(name("b."))));
    let both = vec![address(1, 30), address(2, 20)];
    for (code, answers, authority, expected) in [
        (NoError, both.clone(), vec![], Some(20)),
        (NoError, both.clone(), vec![soa(10, 1)], Some(10)),
        (NoError, vec![address(1, 0)], vec![], None),
        // No such record, RFC 2308.
        (NoError, vec![], vec![soa(50, 20)], Some(20)),
        (NXDomain, vec![], vec![soa(10, 20)], Some(10)),
        (NXDomain, vec![], vec![soa(1000, 1000)], Some(100)),
        (NoError, vec![alias()], vec![soa(50, 60)], Some(40)),
        (NXDomain, vec![address(1, 60)], vec![], None),
        (NoError, vec![alias()], vec![], None),
        (NoError, vec![], vec![], None),
        (ServFail, both.clone(), vec![soa(50, 20)], None),
        (Refused, both.clone(), vec![], None),
    ] {
        let message = message(code, answers, authority);
        assert_eq!(seconds(&message), expected, "{message}");
    }
    let whole = message(NoError, both, vec![]);
    let mut truncated = whole.clone();
    truncated.metadata.truncation = true;
    assert_eq!(seconds(&truncated), None, "truncated");
    let mut without_question = whole.clone();
    without_question.queries.clear();
    assert_eq!(seconds(&without_question), None, "the question is missing");
    let mut extended = whole;
    extended.set_edns(Edns::new());
    assert_eq!(seconds(&extended), Some(20), "EDNS has no TTL");
    extended.metadata.response_code = ResponseCode::BADVERS;
    assert_eq!(seconds(&extended), None, "the EDNS version is unknown");
    assert!(!parsed(&extended).is_conclusive);
}

#[test]
fn ttls_are_counted_down_and_the_answer_ends_with_them() {
    let now = Instant::now();
    let mut known = KnownAnswer::default();
    assert_eq!(ttls(known.record(addresses(60), now)), Ok(vec![60]));
    let at = |seconds| known.valid(after(now, seconds)).map(ttls);
    assert_eq!(at(0), Some(Ok(vec![60])));
    assert_eq!(at(59), Some(Ok(vec![1])));
    assert_eq!(at(60), None);
}

#[test]
fn an_answer_is_valid_for_five_minutes_at_most() {
    let now = Instant::now();
    let mut known = KnownAnswer::default();
    let _ = known.record(addresses(u32::MAX), now);
    let at = |seconds| known.valid(after(now, seconds)).map(ttls);
    assert_eq!(at(299), Some(Ok(vec![u32::MAX - 299])));
    assert_eq!(at(300), None);
}

#[test]
fn an_expired_answer_is_used_for_a_day_while_the_name_server_fails() {
    let start = Instant::now();
    for failure in [failed, server_failure] {
        let mut known = KnownAnswer::default();
        let _ = known.record(addresses(60), start);
        let hour = after(start, 3600);
        assert!(known.valid(hour).is_none(), "it is looked up first");
        assert_eq!(known.stale(hour).map(ttls), Some(Ok(vec![30])));
        let result = known.record(failure(), hour);
        assert!(result.as_ref().is_ok_and(Reply::is_stale));
        assert_eq!(ttls(result), Ok(vec![30]));
        let until_next = known.valid(after(hour, 29)).map(ttls);
        assert_eq!(until_next, Some(Ok(vec![30])), "without another attempt");
        assert!(known.valid(after(hour, 30)).is_none(), "the next attempt");
        let day = after(start, 60 + 24 * 3600);
        assert!(known.stale(after(start, 59 + 24 * 3600)).is_some());
        assert!(known.stale(day).is_none());
        let result = known.record(failure(), day);
        assert!(!result.is_ok_and(|reply| reply.answer.is_conclusive));
    }
}

#[test]
fn a_failure_is_known_for_a_second() {
    let now = Instant::now();
    let mut known = KnownAnswer::default();
    assert_eq!(
        ttls(known.record(failed(), now)),
        Err("no answer".to_owned())
    );
    assert!(known.valid(now).is_some_and(|answer| answer.is_err()));
    assert!(known.valid(after(now, 1)).is_none());
    assert!(known.stale(now).is_none());
    let answer = known.record(server_failure(), now);
    let code = |answer: Reply| response_code(&answer.to(&query(9, "a.example.")));
    assert_eq!(answer.map(code), Ok(ResponseCode::ServFail));
}

#[test]
fn a_conclusive_answer_replaces_the_last_one_even_if_it_is_not_cached() {
    let now = Instant::now();
    let none = || message(ResponseCode::NXDomain, vec![], vec![]);
    let mut truncated = none();
    truncated.metadata.response_code = ResponseCode::NoError;
    truncated.metadata.truncation = true;
    for newer in [none(), truncated] {
        let mut known = KnownAnswer::default();
        let _ = known.record(addresses(60), now);
        assert_eq!(ttls(known.record(Ok(parsed(&newer)), now)), Ok(vec![]));
        assert!(known.valid(now).is_none() && known.stale(now).is_none());
    }
}

#[test]
fn each_client_gets_its_own_id_and_case_and_any_address_first() {
    let edns = |mut message: Message| {
        message.set_edns(Edns::new());
        message
    };
    let all = vec![address(1, 60), address(2, 60), address(3, 60)];
    let answer = edns(message(ResponseCode::NoError, all, vec![]));
    let reply = Reply::new(Arc::new(parsed(&answer)));
    let client = query(0xabcd, "A.eXample.");
    for (random, expected) in [(0, [1, 2, 3]), (1, [2, 3, 1]), (5, [3, 1, 2])] {
        let bytes = reply.rotated(&client, random);
        let rotated = Message::from_vec(&bytes).unwrap();
        assert_eq!(rotated.metadata.id, 0xabcd);
        assert_eq!(rotated.queries[0].name().to_ascii(), "A.eXample.");
        let last = rotated.answers.iter().map(|r| match &r.data {
            RData::A(address) => address.0.octets()[3],
            other => panic!("{other}"),
        });
        assert!(last.eq(expected), "{rotated}");
        assert_eq!(rotated.edns, answer.edns);
    }
    let different = vec![address(1, 60), address(2, 61)];
    let different = message(ResponseCode::NoError, different, vec![]);
    let reply = Reply::new(Arc::new(parsed(&different)));
    assert_eq!(reply.rotated(&client, 1), reply.to(&client), "not one set");
}

proptest! {
    /// Whatever a name server and its failures are, no answer outlives its TTL while the name
    /// server answers, and none a day more than it.
    #[test]
    fn no_answer_is_used_for_too_long(
        events in proptest::collection::vec((0..3_u8, 0..400_u32, 0..50_000_u64), 1..40),
    ) {
        let mut now = Instant::now();
        let mut known = KnownAnswer::default();
        let (mut expires, mut is_failing) = (None, false);
        for (event, ttl, pause) in events {
            now = after(now, pause);
            match event {
                0 => {
                    let _ = known.record(addresses(ttl), now);
                    expires = (ttl > 0).then(|| after(now, ttl.min(300).into()));
                    is_failing = false;
                }
                1 => {
                    let _ = known.record(failed(), now);
                    is_failing = true;
                }
                _ => {}
            }
            let last = |limit: u64| expires.is_some_and(|expires| now < after(expires, limit));
            prop_assert_eq!(known.stale(now).is_some(), last(24 * 3600));
            match known.valid(now) {
                Some(Ok(reply)) if reply.is_stale() => prop_assert!(is_failing && last(24 * 3600)),
                Some(Ok(_)) => prop_assert!(last(0)),
                Some(Err(_)) => prop_assert!(is_failing),
                None => prop_assert!(!last(0)),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic(
        header in any::<[u8; 2]>(),
        counts in any::<[u8; 4]>(),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let [questions, answers, authorities, additions] = counts.map(|count| count & 3);
        let [a, b] = header;
        let start = [0, 7, a, b, 0, questions, 0, answers, 0, authorities, 0, additions];
        let bytes = [&start[..], &rest].concat();
        let query = query(7, "a.example.");
        let answer = UpstreamAnswer::new(&query, bytes.clone(), FROM, MAX_NEGATIVE);
        let reply = Reply { answer: Arc::new(answer), age: Age::Stale };
        prop_assert_eq!(reply.rotated(&query, 3).len(), bytes.len());
    }
}
