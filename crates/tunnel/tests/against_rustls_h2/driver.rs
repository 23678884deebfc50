//! Drives one end over a transport.

use identity::Credentials;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tunnel::{Event, Handshake, MIN_BUFFER, Received, Tunnel, TunnelState};

use crate::Plan;
use crate::credentials::client_config;

/// What the end does.
pub trait Application {
    /// Handles an event, with its data.
    fn handle(&mut self, event: Event, data: &[u8], tunnel: &mut Tunnel);

    /// Sends what can be sent.
    fn send(&mut self, tunnel: &mut Tunnel);
}

pub struct Driver {
    tunnel: Tunnel,
    io: DuplexStream,
    random: fastrand::Rng,
    is_frozen_often: bool,
}

impl Driver {
    pub async fn connect(io: DuplexStream, credentials: &Credentials, plan: &Plan) -> Self {
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let handshake = Handshake::client(&client_config(credentials), name).unwrap();
        Self::complete(handshake, io, plan).await
    }

    pub async fn accept(io: DuplexStream, credentials: &Credentials, plan: &Plan) -> Self {
        let handshake = Handshake::server(&credentials.server).unwrap();
        Self::complete(handshake, io, plan).await
    }

    async fn complete(mut handshake: Handshake, mut io: DuplexStream, plan: &Plan) -> Self {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let mut buffer = [0; 9000];
        loop {
            io.write_all(handshake.output()).await.unwrap();
            handshake.sent(handshake.output().len());
            if handshake.is_complete() {
                break;
            }
            let most = random.usize(1..buffer.len());
            let length = io.read(&mut buffer[..most]).await.unwrap();
            assert!(length > 0, "the peer closed the connection");
            handshake.receive(&buffer[..length]).unwrap();
        }
        assert_eq!(handshake.peer_chain().len(), 1);
        Self {
            tunnel: handshake.into_tunnel(plan.config(), 0).unwrap(),
            io,
            random,
            is_frozen_often: plan.is_frozen_often,
        }
    }

    /// Runs until the tunnel is finished and the peer has closed it.
    pub async fn run<A: Application>(self, mut application: A) -> A {
        let Self {
            mut tunnel,
            io,
            mut random,
            is_frozen_often,
        } = self;
        let (mut read, mut write) = tokio::io::split(io);
        let mut buffer = vec![0; MIN_BUFFER + 50_000];
        let mut has_data = false; // rustls limits key updates without data in between
        loop {
            let before = tunnel.unsent();
            application.send(&mut tunnel);
            has_data |= tunnel.unsent() > before;
            if tunnel.is_finished() {
                tunnel.close();
            } else if has_data && random.u8(..) < 80 {
                tunnel.refresh_traffic_keys().unwrap();
                has_data = false;
            }
            let wire = tunnel.output().to_vec();
            let mut input = tunnel.input(&mut buffer);
            let space = input.space();
            let most = random.usize(1..space.len());
            tokio::select! {
                length = read.read(&mut space[..most]) => {
                    let length = length.unwrap();
                    if length == 0 {
                        // Once this side has closed, h2 may drop the connection.
                        let is_finished = tunnel.is_finished();
                        assert!(tunnel.end_of_input().is_ok() || is_finished);
                        return application;
                    }
                    input.fill(length);
                }
                written = write.write(&wire), if !wire.is_empty() => {
                    // An error: the peer has closed, and what it sent before is read next.
                    tunnel.sent(written.unwrap_or(wire.len()));
                }
            }
            while let Received::Event(event) = tunnel.receive(&mut input, 0).unwrap() {
                let data = match &event {
                    Event::Data { range, .. } => input.data(range.clone()).to_vec(),
                    _ => Vec::new(),
                };
                if is_frozen_often && random.u8(..) < 40 {
                    tunnel.hold(input);
                    tunnel = thawed(tunnel);
                    input = tunnel.input(&mut buffer);
                }
                application.handle(event, &data, &mut tunnel);
            }
            tunnel.hold(input);
        }
    }
}

fn thawed(tunnel: Tunnel) -> Tunnel {
    let text = serde_json::to_vec(&tunnel.freeze()).unwrap();
    let state: TunnelState = serde_json::from_slice(&text).unwrap();
    state.thaw().unwrap()
}
