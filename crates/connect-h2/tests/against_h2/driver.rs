//! Drives one end over a transport.

use connect_h2::{Connection, Event, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::Plan;

/// What the end does.
pub trait Application {
    /// Handles an event; ranges are positions in `piece`.
    fn handle(&mut self, event: Event, piece: &[u8], connection: &mut Connection);

    /// Sends what can be sent.
    fn send(&mut self, out: &mut Out<'_>);

    /// Whether the end closes the transport.
    fn is_done(&self, connection: &Connection) -> bool;
}

/// Where an application sends.
pub struct Out<'a> {
    pub connection: &'a mut Connection,
    wire: &'a mut Vec<u8>,
}

impl Out<'_> {
    /// Writes a DATA frame behind all other frames.
    pub fn data(&mut self, id: StreamId, data: &[u8], end_stream: bool) {
        self.wire.extend(self.connection.take_output());
        let head = self.connection.data_head(id, data.len() as u32, end_stream);
        self.wire
            .extend(head.expect("the stream is open and has capacity"));
        self.wire.extend(data);
    }
}

pub struct Driver<A> {
    connection: Connection,
    application: A,
    io: DuplexStream,
    random: fastrand::Rng,
    is_frozen_often: bool,
}

impl<A: Application> Driver<A> {
    pub fn new(connection: Connection, application: A, io: DuplexStream, plan: &Plan) -> Self {
        Self {
            connection,
            application,
            io,
            random: fastrand::Rng::with_seed(plan.seed),
            is_frozen_often: plan.is_frozen_often,
        }
    }

    /// Runs until the application is done or the peer closes the transport.
    pub async fn run(self) -> A {
        let Self {
            mut connection,
            mut application,
            io,
            mut random,
            is_frozen_often,
        } = self;
        let (mut read, mut write) = tokio::io::split(io);
        let mut wire = Vec::new();
        let mut buffer = vec![0; 40_000];
        loop {
            let (connection_ref, wire_ref) = (&mut connection, &mut wire);
            application.send(&mut Out {
                connection: connection_ref,
                wire: wire_ref,
            });
            wire.extend(connection.take_output());
            if wire.is_empty() && application.is_done(&connection) {
                return application;
            }
            let most = random.usize(1..buffer.len());
            tokio::select! {
                length = read.read(&mut buffer[..most]) => {
                    let length = length.unwrap();
                    if length == 0 {
                        return application;
                    }
                    let (piece, mut at) = (&buffer[..length], 0);
                    while let Some(event) = connection.receive(piece, &mut at, 0).unwrap() {
                        application.handle(event, piece, &mut connection);
                        if is_frozen_often && random.u8(..) < 40 {
                            connection = thawed(connection);
                        }
                    }
                }
                written = write.write(&wire), if !wire.is_empty() => {
                    wire.drain(..written.unwrap_or(usize::MAX).min(wire.len()));
                }
            }
        }
    }
}

fn thawed(connection: Connection) -> Connection {
    let text = serde_json::to_vec(&connection.freeze()).unwrap();
    Connection::thaw(serde_json::from_slice(&text).unwrap()).unwrap()
}
