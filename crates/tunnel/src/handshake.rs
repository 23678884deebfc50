//! The TLS handshake, by rustls.

use std::fmt;

use connect_h2::Role;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, ServerConfig};
use tls_record::{HandoverError, HandshakeSecrets, MAX_RECORD};

use crate::tunnel::{Config, Tunnel};

/// Length of a record's header in bytes: type, version, length.
const RECORD_HEADER: usize = 5;

/// A TLS handshake, after which a [`Tunnel`] begins.
///
/// The caller passes what it receives to [`receive`](Self::receive) and sends
/// [`output`](Self::output), until the handshake [is complete](Self::is_complete) and the output is
/// sent.
pub struct Handshake {
    connection: Connection,
    secrets: HandshakeSecrets,
    /// Received bytes that rustls has not consumed.
    input: Vec<u8>,
    /// How many of them rustls may see: whole records.
    offered: usize,
    output: Vec<u8>,
    has_failed: bool,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// One side did not accept the other one, or violated TLS.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The connection cannot be taken over from rustls.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The peer closed the connection or sent data before the handshake was complete.
    #[error("the peer interrupted the handshake")]
    Interrupted,
    /// An earlier call has returned why the handshake failed.
    #[error("the handshake has failed before")]
    FailedBefore,
}

impl Handshake {
    /// Begins a handshake as a client. The configuration must allow only TLS 1.3 with
    /// suites of AES-GCM ([`Suite::of`](crate::Suite::of)).
    ///
    /// # Errors
    /// If the configuration allows no handshake.
    pub fn client(
        config: &ClientConfig,
        name: ServerName<'static>,
    ) -> Result<Self, HandshakeError> {
        let (secrets, config) = HandshakeSecrets::client(config);
        let connection = UnbufferedClientConnection::new(config, name)?;
        let mut handshake = Self::new(Connection::Client(connection), secrets);
        handshake.advance()?;
        Ok(handshake)
    }

    /// Awaits a handshake as a server, with a configuration as for [`client`](Self::client).
    ///
    /// # Errors
    /// If the configuration allows no handshake.
    pub fn server(config: &ServerConfig) -> Result<Self, HandshakeError> {
        let (secrets, config) = HandshakeSecrets::server(config);
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Connection::Server(connection), secrets))
    }

    fn new(connection: Connection, secrets: HandshakeSecrets) -> Self {
        Self {
            connection,
            secrets,
            input: Vec::new(),
            offered: 0,
            output: Vec::new(),
            has_failed: false,
        }
    }

    /// Handles received bytes. What follows the handshake is kept.
    ///
    /// # Errors
    /// If the handshake failed. The output ends with an alert for the peer.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        if self.has_failed {
            return Err(HandshakeError::FailedBefore);
        }
        self.input.extend_from_slice(bytes);
        self.advance()
    }

    /// The bytes to send.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Notes that the first `length` bytes of the output were sent.
    ///
    /// # Panics
    /// Panics if there are fewer.
    pub fn sent(&mut self, length: usize) {
        self.output.drain(..length);
    }

    /// Whether the peer is authenticated.
    pub fn is_complete(&self) -> bool {
        !self.connection.state().is_handshaking()
    }

    /// The certificate chain of the peer, leaf first.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = self.connection.state().peer_certificates();
        let chain = chain.unwrap_or_default().iter();
        chain.map(|c| c.clone().into_owned()).collect()
    }

    /// Begins HTTP/2. The handshake must be complete, and its output sent.
    ///
    /// # Errors
    /// If the connection cannot be taken over from rustls.
    pub fn into_tunnel(self, config: Config, now_ms: u64) -> Result<Tunnel, HandshakeError> {
        let (role, extracted) = self.connection.extract()?;
        let mut records = self.secrets.into_record_layer(extracted)?;
        records.hold(&self.input);
        Ok(Tunnel::new(records, role, config, now_ms))
    }

    /// Lets rustls process records, one more at a time: those behind the handshake stay here.
    fn advance(&mut self) -> Result<(), HandshakeError> {
        loop {
            self.process()?;
            let offered = end_of_next_record(&self.input, self.offered);
            if self.is_complete() || offered == self.offered {
                return Ok(());
            }
            self.offered = offered;
        }
    }

    /// Lets rustls process what it is offered.
    fn process(&mut self) -> Result<(), HandshakeError> {
        loop {
            match self.step() {
                Ok(Step::Progress) => {}
                Ok(Step::Waiting) => return Ok(()),
                Err(error) => {
                    self.has_failed = true;
                    // rustls must not see the input again.
                    while self.connection.state().wants_write() && self.step().is_ok() {}
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, HandshakeError> {
        let (input, output) = (&mut self.input[..self.offered], &mut self.output);
        let (discard, step) = match &mut self.connection {
            Connection::Client(client) => step(client.process_tls_records(input), output),
            Connection::Server(server) => step(server.process_tls_records(input), output),
        };
        self.input.drain(..discard);
        self.offered -= discard;
        step
    }
}

impl Connection {
    fn state(&self) -> &CommonState {
        match self {
            Self::Client(client) => client,
            Self::Server(server) => server,
        }
    }

    fn extract(self) -> Result<(Role, ExtractedSecrets), rustls::Error> {
        Ok(match self {
            Self::Client(client) => (Role::Client, client.dangerous_into_kernel_connection()?.0),
            Self::Server(server) => (Role::Server, server.dangerous_into_kernel_connection()?.0),
        })
    }
}

/// Where rustls is.
enum Step {
    /// There may be more to do.
    Progress,
    /// It waits for the peer, or has completed the handshake.
    Waiting,
}

/// Does what rustls asks for. Returns how many bytes of the input it has consumed as well.
fn step<Data>(
    UnbufferedStatus { discard, state, .. }: UnbufferedStatus<'_, '_, Data>,
    output: &mut Vec<u8>,
) -> (usize, Result<Step, HandshakeError>) {
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(message)) => {
            encode(message, output);
            Ok(Step::Progress)
        }
        Ok(ConnectionState::TransmitTlsData(transmitted)) => {
            transmitted.done();
            Ok(Step::Progress)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
            Ok(Step::Waiting)
        }
        Ok(_) => Err(HandshakeError::Interrupted),
        Err(error) => Err(error.into()),
    };
    (discard, step)
}

/// Appends a message to the output.
fn encode<Data>(mut message: EncodeTlsData<'_, Data>, output: &mut Vec<u8>) {
    if let Err(EncodeError::InsufficientSize(needed)) = message.encode(&mut []) {
        let begin = output.len();
        output.resize(begin + needed.required_size, 0);
        let encoded = message.encode(&mut output[begin..]);
        encoded.expect("it fits, and is encoded once");
    }
}

/// The end of the record that begins at a position, if it is complete, or else that position. If
/// it is not a TLS record, the end of the input, which rustls then rejects.
fn end_of_next_record(input: &[u8], begin: usize) -> usize {
    let [kind, major, _, high, low, rest @ ..] = &input[begin..] else {
        return begin;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if !(20..=23).contains(kind) || *major != 3 || length > MAX_RECORD {
        input.len()
    } else if rest.len() < length {
        begin
    } else {
        begin + RECORD_HEADER + length
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("is_complete", &self.is_complete())
            .finish_non_exhaustive()
    }
}
