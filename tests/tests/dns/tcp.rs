//! Queries over TCP: what clients share, and how they divide what they send.

use std::io::{Read, Write};
use std::net::TcpStream;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType::A;
use underpass_tests::name_server::{
    ANSWER, CLOSING, HELD, LARGE, addresses, ask_tcp, query, read_message, write_message,
};
use underpass_tests::sandbox::{connect, until};

use super::fixture::{servers, under_all, under_routed};

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes()[..], &bytes].concat()
}

fn next(stream: &mut TcpStream) -> Message {
    Message::from_vec(&read_message(stream).unwrap()).unwrap()
}

#[test]
fn queries_are_answered_however_they_are_divided_into_segments() {
    under_all("segments", |setup| {
        for server in servers() {
            let mut stream = connect(setup.pod(), server).unwrap();
            stream.set_nodelay(true).unwrap();
            let names = [
                "a.example.",
                "web.",
                "b.example.",
                "a.example.",
                "db.other.",
            ];
            let queries = names.map(|name| query(name, A));
            let all = queries.iter().flat_map(framed).collect::<Vec<u8>>();
            let in_one = [all.clone()];
            let by_byte: Vec<Vec<u8>> = all.iter().map(|byte| vec![*byte]).collect();
            // The end of each message in the segment of the next one.
            let across: Vec<Vec<u8>> = all.chunks(37).map(<[u8]>::to_vec).collect();
            for segments in [&in_one[..], &by_byte, &across] {
                for segment in segments {
                    stream.write_all(segment).unwrap();
                }
                let mut answered: Vec<u16> = queries
                    .iter()
                    .map(|_| next(&mut stream).metadata.id)
                    .collect();
                answered.sort_unstable();
                assert_eq!(answered, queries.each_ref().map(|q| q.metadata.id));
            }
        }
    });
}

#[test]
fn a_lookup_continues_for_others_when_the_client_that_began_it_leaves() {
    under_all("leaves", |setup| {
        for server in servers() {
            setup.server.set_holding(true);
            setup.server.seen();
            let mut first = connect(setup.pod(), server).unwrap();
            let mut sent = query(HELD, A);
            // A query of its own for each name server under NAT.
            sent.metadata.checking_disabled = server.is_ipv6();
            write_message(&mut first, &sent.to_vec().unwrap()).unwrap();
            until("the name server has the query", || {
                (!setup.server.seen().is_empty()).then_some(())
            });
            let mut others = [(), ()].map(|()| connect(setup.pod(), server).unwrap());
            for other in &mut others {
                write_message(other, &sent.to_vec().unwrap()).unwrap();
            }
            // The other connections are served by now.
            let mesh = query("web.", A).to_vec().unwrap();
            for other in &mut others {
                write_message(other, &mesh).unwrap();
                assert_eq!(addresses(&next(other)), ["10.96.0.10"]);
            }
            netns::sockopt::reset_on_close(&first).unwrap();
            drop(first);
            setup.server.set_holding(false);
            for other in &mut others {
                assert_eq!(addresses(&next(other)), [ANSWER.to_string()]);
            }
            assert!(setup.server.seen().is_empty(), "one query for all");
        }
    });
}

#[test]
fn a_client_that_never_reads_delays_no_other_and_is_closed() {
    let setup = under_routed("never-reads");
    let server = servers()[0];
    ask_tcp(setup.pod(), server, &query(LARGE, A)).unwrap(); // cached from now on
    setup.server.seen();
    setup.server.set_holding(true);
    let mut unread = connect(setup.pod(), server).unwrap();
    let held = query(HELD, A);
    write_message(&mut unread, &held.to_vec().unwrap()).unwrap();
    until("the name server has the query", || {
        (!setup.server.seen().is_empty()).then_some(())
    });
    let mut sharing = connect(setup.pod(), server).unwrap();
    write_message(&mut sharing, &held.to_vec().unwrap()).unwrap();
    // More answers than all buffers have room for.
    let flood = framed(&query(LARGE, A)).repeat(400_000);
    unread.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(length) = unread.write(&flood[sent..]) {
        sent += length;
        assert!(sent < flood.len(), "the proxy reads without end");
    }
    setup.server.set_holding(false);
    assert_eq!(addresses(&next(&mut sharing)), [ANSWER.to_string()]);
    let others = ask_tcp(setup.pod(), server, &query("a.example.", A)).unwrap();
    assert_eq!(addresses(&others), [ANSWER.to_string()]);
    until("the proxy closes the connection", || {
        matches!(unread.write(&flood[sent..]), Err(e) if e.kind() != std::io::ErrorKind::WouldBlock)
            .then_some(())
    });
    let _ = unread.read(&mut [0]);
}

#[test]
fn a_query_is_sent_again_if_the_name_server_has_closed_the_connection() {
    under_all("closing", |setup| {
        let answer = ask_tcp(setup.pod(), servers()[0], &query(CLOSING, A)).unwrap();
        assert_eq!(addresses(&answer), [ANSWER.to_string()]);
    });
}

#[test]
fn a_pod_has_a_hundred_connections_at_most_and_idle_ones_end() {
    let setup = under_routed("hundred");
    let server = servers()[1];
    let open = || connect(setup.pod(), server).unwrap();
    let is_served = |stream: &mut TcpStream| {
        let _ = write_message(stream, &query("web.", A).to_vec().unwrap());
        read_message(stream).is_ok()
    };
    // On a busy machine, the first ones may have ended before the last one is opened.
    let mut idle = until("one of a hundred and one is reset", || {
        let mut all: Vec<TcpStream> = (0..101).map(|_| open()).collect();
        let served = all.iter_mut().filter_map(|s| is_served(s).then_some(()));
        (served.count() == 100).then(|| all.remove(0))
    });
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "it ends in order");
    assert!(is_served(&mut open()), "there is room again");
}
