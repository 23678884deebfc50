//! A server that returns what each stream sends.

use std::collections::BTreeMap;

use connect_h2::{Change, Connection, Event, StreamId};
use http::{Method, StatusCode};

use crate::driver::{Application, Out};

#[derive(Default)]
pub struct Echo {
    streams: BTreeMap<StreamId, Stream>,
    pub requests: usize,
    drains_at_once: bool,
    is_draining: bool,
}

#[derive(Default)]
struct Stream {
    queue: Vec<u8>,
    has_ended: bool,
}

impl Echo {
    /// A server that drains with the first request.
    pub fn draining() -> Self {
        Self {
            drains_at_once: true,
            ..Self::default()
        }
    }

    pub fn open(&self) -> usize {
        self.streams.len()
    }
}

impl Application for Echo {
    fn handle(&mut self, event: Event, piece: &[u8], connection: &mut Connection) {
        match event {
            Event::Request { id, head } => {
                assert_eq!(
                    (head.method, head.authority.as_str()),
                    (Method::CONNECT, "10.0.0.1:80")
                );
                assert!(head.headers["authorization"].is_sensitive());
                // The same fields again, so that the client can compare them.
                let answered = connection.respond(id, StatusCode::OK, &head.headers, false);
                answered.unwrap();
                self.streams.insert(id, Stream::default());
                self.requests += 1;
                if self.drains_at_once {
                    connection.drain();
                    self.is_draining = true;
                }
            }
            Event::Data { id, range } => {
                let stream = self.streams.get_mut(&id).unwrap();
                stream.queue.extend_from_slice(&piece[range]);
            }
            Event::Stream { id, change } => match change {
                Change::Credit => {}
                Change::Ended => self.streams.get_mut(&id).unwrap().has_ended = true,
                Change::Reset { .. } | Change::Finished { .. } => {
                    self.streams.remove(&id);
                    connection.release(id);
                }
                Change::Refused | Change::Failed(_) => panic!("{change:?}"),
            },
            // The client has nothing more to open.
            Event::GoAway { .. } => {
                connection.drain();
                self.is_draining = true;
            }
            Event::Settings => {}
            Event::Response { .. } => panic!("a response to a server"),
        }
    }

    fn send(&mut self, out: &mut Out<'_>) {
        self.streams.retain(|id, stream| {
            loop {
                let length = stream
                    .queue
                    .len()
                    .min(out.connection.capacity(*id) as usize);
                if length == 0 {
                    break;
                }
                out.data(*id, &stream.queue[..length], false);
                stream.queue.drain(..length);
                // Only now, so that the client sends no faster than it reads.
                out.connection.taken(*id, length, 0);
            }
            let has_finished = stream.has_ended && stream.queue.is_empty();
            if has_finished {
                out.data(*id, &[], true);
                out.connection.release(*id);
            }
            !has_finished
        });
    }

    fn is_done(&self, connection: &Connection) -> bool {
        self.is_draining && connection.is_finished()
    }
}
