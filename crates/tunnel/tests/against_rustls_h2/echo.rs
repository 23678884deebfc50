//! A server that returns what each stream sends.

use std::collections::BTreeMap;

use http::StatusCode;
use tunnel::{Change, Event, StreamId, Tunnel};

use crate::driver::Application;

#[derive(Default)]
pub struct Echo {
    streams: BTreeMap<StreamId, Stream>,
    pub finished: usize,
}

#[derive(Default)]
struct Stream {
    queue: Vec<u8>,
    has_ended: bool,
}

impl Application for Echo {
    fn handle(&mut self, event: Event, data: &[u8], tunnel: &mut Tunnel) {
        match event {
            Event::Request { id, head } => {
                let answered = tunnel.respond(id, StatusCode::OK, &head.headers, false);
                answered.unwrap();
                self.streams.insert(id, Stream::default());
            }
            Event::Data { id, .. } => {
                self.streams
                    .get_mut(&id)
                    .unwrap()
                    .queue
                    .extend_from_slice(data);
            }
            Event::Stream { id, change } => match change {
                Change::Credit => {}
                Change::Ended => self.streams.get_mut(&id).unwrap().has_ended = true,
                other => panic!("{other:?}"),
            },
            Event::GoAway { .. } => tunnel.drain(), // the client has nothing more to open
            Event::Settings => {}
            Event::Response { .. } => panic!("a response to a server"),
        }
    }

    fn send(&mut self, tunnel: &mut Tunnel) {
        self.streams.retain(|id, stream| {
            let sent = tunnel.send(*id, &stream.queue, stream.has_ended).unwrap();
            stream.queue.drain(..sent);
            // Only now, so that the client sends no faster than it reads.
            tunnel.taken(*id, sent, 0);
            let has_finished = stream.has_ended && stream.queue.is_empty();
            if has_finished {
                tunnel.release(*id);
                self.finished += 1;
            }
            !has_finished
        });
    }
}
