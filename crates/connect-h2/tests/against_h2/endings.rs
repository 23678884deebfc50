//! How streams and connections end, with h2 as the peer.

use bytes::Bytes;
use connect_h2::{Change, Connection, ErrorCode, Event, Role, StreamId};
use h2::Reason;
use http::{HeaderMap, Response};
use tokio::io::duplex;

use crate::driver::{Application, Driver, Out};
use crate::echo::Echo;
use crate::{Plan, peer};

/// A client that answers a byte when it has received everything, and records how the stream ends.
#[derive(Default)]
struct Listener {
    id: Option<StreamId>,
    is_established: bool,
    received: usize,
    has_answered: bool,
    changes: Vec<Change>,
}

const DATA: usize = 5000;

impl Application for Listener {
    fn handle(&mut self, event: Event, _piece: &[u8], connection: &mut Connection) {
        match event {
            Event::Settings => self.is_established = true,
            Event::Data { id, range } => {
                self.received += range.len();
                connection.taken(id, range.len(), 0);
            }
            Event::Stream { change, .. } if change != Change::Credit => self.changes.push(change),
            _ => {}
        }
    }

    fn send(&mut self, out: &mut Out<'_>) {
        if self.is_established && self.id.is_none() {
            self.id = out.connection.open("a:1", &HeaderMap::new()).ok();
        }
        if let Some(id) = self.id
            && self.received == DATA
            && !self.has_answered
        {
            out.data(id, b"x", false);
            self.has_answered = true;
        }
    }

    fn is_done(&self, _connection: &Connection) -> bool {
        !self.changes.is_empty()
    }
}

fn plan() -> Plan {
    Plan {
        seed: 1,
        stream_window: 1000,
        peer_window: 1000,
        transport: 300,
        streams: vec![(30_000, false)],
        header_table: 0,
        is_frozen_often: true,
    }
}

/// How a stream ends whose server sends data, waits for an answer, and resets it.
fn end_of_reset(reason: Reason) -> Change {
    let plan = plan();
    let mut changes = Vec::new();
    plan.run(async {
        let (here, there) = duplex(plan.transport);
        let client = Connection::new(Role::Client, plan.config(), 0);
        let driver = Driver::new(client, Listener::default(), here, &plan);
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(there).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    let data = Bytes::from(vec![0; DATA]);
                    assert!(peer::send_all(&mut send, data, 700).await);
                    let mut received = request.into_body();
                    received.data().await.unwrap().unwrap();
                    send.send_reset(reason);
                });
            }
        });
        changes = driver.run().await.changes;
    });
    changes[0]
}

#[test]
fn resets_of_h2_arrive_with_their_code_after_the_data() {
    let reset = |code| Change::Reset {
        code,
        has_data: true,
    };
    let finished = Change::Finished {
        code: ErrorCode::NO_ERROR,
    };
    for (reason, change) in [
        (Reason::CONNECT_ERROR, reset(ErrorCode::CONNECT_ERROR)),
        (Reason::CANCEL, reset(ErrorCode::CANCEL)),
        (Reason::NO_ERROR, finished),
    ] {
        assert_eq!(end_of_reset(reason), change);
    }
}

#[test]
fn a_drained_server_serves_the_open_streams_of_h2() {
    let plan = plan();
    plan.run(async {
        let (here, there) = duplex(plan.transport);
        let server = Connection::new(Role::Server, plan.config(), 0);
        let driver = Driver::new(server, Echo::draining(), here, &plan);
        let peer = tokio::task::spawn_local(peer::run_client(there, plan.clone()));
        let echo = driver.run().await;
        assert_eq!((echo.requests, echo.open()), (1, 0));
        peer.await.unwrap();
    });
}
