//! A client that sends a payload on each stream and expects it back.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, StatusCode};
use tunnel::{Change, Event, StreamId, Tunnel};

use crate::Plan;
use crate::driver::Application;

pub struct Opener {
    /// Payloads of streams that are not open yet.
    waiting: Vec<Vec<u8>>,
    streams: BTreeMap<StreamId, Stream>,
    pub finished: usize,
    /// Whether the peer has sent its settings.
    is_established: bool,
}

struct Stream {
    payload: Vec<u8>,
    sent: usize,
    has_finished: bool,
    received: usize,
}

/// The headers of every request.
pub fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("baggage", HeaderValue::from_static("k8s.namespace.name=a"));
    headers
}

impl Opener {
    pub fn new(plan: &Plan) -> Self {
        Self {
            waiting: (0..plan.streams.len()).map(|i| plan.payload(i)).collect(),
            streams: BTreeMap::new(),
            finished: 0,
            is_established: false,
        }
    }

    fn open(&mut self, tunnel: &mut Tunnel) {
        while self.is_established && tunnel.open_streams() < tunnel.max_streams() {
            let Some(payload) = self.waiting.pop() else {
                return;
            };
            let id = tunnel.open("10.0.0.1:80", &headers()).unwrap();
            let stream = Stream {
                payload,
                sent: 0,
                has_finished: false,
                received: 0,
            };
            self.streams.insert(id, stream);
        }
    }
}

impl Application for Opener {
    fn handle(&mut self, event: Event, data: &[u8], tunnel: &mut Tunnel) {
        match event {
            Event::Settings => self.is_established = true,
            Event::Response { head, .. } => {
                assert_eq!((head.status, head.headers), (StatusCode::OK, headers()));
            }
            Event::Data { id, .. } => {
                let stream = self.streams.get_mut(&id).unwrap();
                assert!(stream.payload[stream.received..].starts_with(data));
                stream.received += data.len();
                tunnel.taken(id, data.len(), 0);
            }
            Event::Stream { id, change } => match change {
                Change::Credit => {}
                Change::Ended => {
                    let stream = self.streams.remove(&id).unwrap();
                    assert_eq!(stream.received, stream.payload.len());
                    tunnel.release(id);
                    self.finished += 1;
                }
                other => panic!("{other:?}"),
            },
            Event::GoAway { .. } => {}
            Event::Request { .. } => panic!("a request to a client"),
        }
    }

    fn send(&mut self, tunnel: &mut Tunnel) {
        self.open(tunnel);
        for (id, stream) in &mut self.streams {
            if !stream.has_finished {
                let sent = tunnel.send(*id, &stream.payload[stream.sent..], true);
                stream.sent += sent.unwrap();
                stream.has_finished = stream.sent == stream.payload.len();
            }
        }
        if self.waiting.is_empty() && self.streams.is_empty() {
            tunnel.drain();
        }
    }
}
