//! A client that sends a payload on each stream and expects it back.

use std::collections::BTreeMap;

use connect_h2::{Change, Connection, ErrorCode, Event, StreamId};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::Plan;
use crate::driver::{Application, Out};

pub struct Opener {
    /// Streams to open: their payload, and whether they are reset.
    waiting: Vec<(Vec<u8>, bool)>,
    streams: BTreeMap<StreamId, Stream>,
    pub finished: usize,
    /// Whether the peer has sent its settings.
    is_established: bool,
}

struct Stream {
    payload: Vec<u8>,
    sent: usize,
    is_reset: bool,
    has_finished: bool,
    received: Vec<u8>,
    unread: usize,
}

/// The request headers of the stream with this number.
pub fn headers(number: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let baggage = format!("k8s.namespace.name=a,number={number}");
    headers.insert("baggage", HeaderValue::from_str(&baggage).unwrap());
    let mut secret = HeaderValue::from_static("secret");
    secret.set_sensitive(true);
    headers.insert("authorization", secret);
    headers.append(
        "x-bytes",
        HeaderValue::from_bytes(&[0xff, b'~', b' ', 0x80]).unwrap(),
    );
    headers.append("x-bytes", HeaderValue::from_static(""));
    headers
}

impl Opener {
    pub fn new(plan: &Plan) -> Self {
        let streams = plan.streams.iter().enumerate();
        Self {
            waiting: streams
                .map(|(i, (_, is_reset))| (plan.payload(i), *is_reset))
                .collect(),
            streams: BTreeMap::new(),
            finished: 0,
            is_established: false,
        }
    }
}

impl Application for Opener {
    fn handle(&mut self, event: Event, piece: &[u8], connection: &mut Connection) {
        match event {
            Event::Settings => self.is_established = true,
            Event::Response { id, head } => {
                assert_eq!(head.status, StatusCode::OK);
                assert_eq!(head.headers, headers(id.0 as usize / 2));
            }
            Event::Data { id, range } => {
                let stream = self.streams.get_mut(&id).unwrap();
                stream.received.extend_from_slice(&piece[range.clone()]);
                stream.unread += range.len();
                assert!(stream.payload.starts_with(&stream.received));
            }
            Event::Stream { id, change } => match change {
                Change::Credit => {}
                Change::Ended => {
                    let stream = self.streams.remove(&id).unwrap();
                    assert_eq!(stream.received, stream.payload);
                    connection.release(id);
                    self.finished += 1;
                }
                _ => panic!("{change:?}"),
            },
            Event::GoAway { code, .. } => assert_eq!(code, ErrorCode::NO_ERROR),
            Event::Request { .. } => panic!("a request to a client"),
        }
    }

    fn send(&mut self, out: &mut Out<'_>) {
        let limit = out.connection.max_streams() as usize;
        while self.is_established && out.connection.open_streams() < limit {
            let Some((payload, is_reset)) = self.waiting.pop() else {
                break;
            };
            let number = self.streams.len() + self.finished;
            let id = out
                .connection
                .open("10.0.0.1:80", &headers(number))
                .unwrap();
            let stream = Stream {
                payload,
                sent: 0,
                is_reset,
                has_finished: false,
                received: Vec::new(),
                unread: 0,
            };
            self.streams.insert(id, stream);
        }
        self.streams.retain(|id, stream| {
            out.connection.taken(*id, stream.unread, 0);
            stream.unread = 0;
            if stream.is_reset && stream.sent >= stream.payload.len() / 2 {
                out.connection.reset(*id, ErrorCode::CANCEL);
                out.connection.release(*id);
                self.finished += 1;
                return false;
            }
            while !stream.has_finished {
                let rest = &stream.payload[stream.sent..];
                let length = rest.len().min(out.connection.capacity(*id) as usize);
                if length == 0 && !rest.is_empty() {
                    break;
                }
                stream.has_finished = length == rest.len();
                out.data(*id, &rest[..length], stream.has_finished);
                stream.sent += length;
            }
            true
        });
        if self.waiting.is_empty() && self.streams.is_empty() {
            out.connection.drain();
        }
    }

    fn is_done(&self, connection: &Connection) -> bool {
        self.waiting.is_empty() && self.streams.is_empty() && connection.is_finished()
    }
}
