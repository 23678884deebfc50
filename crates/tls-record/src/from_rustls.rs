//! Takes a connection over from rustls.
//!
//! rustls returns the keys and sequence numbers of a finished handshake, but not the traffic
//! secrets that the next keys follow from. Those it passes to the [`KeyLog`] of the configuration,
//! so each connection gets a configuration with its own one.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::{ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, KeyLog, ServerConfig};

use crate::error::InvalidState;
use crate::record_layer::RecordLayer;
use crate::secret::TrafficSecret;
use crate::state::{Direction, RecordState, Role};
use crate::suite::Suite;

const CLIENT_SECRET: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_SECRET: &str = "SERVER_TRAFFIC_SECRET_0";
/// Maximum number of key updates before a connection is taken over. rustls accepts 32 without data.
const MAX_KEY_UPDATES: usize = 64;

/// The traffic secrets of one rustls connection, from its handshake on.
///
/// 1. Create it from the configuration, and the connection with the configuration that it returns.
/// 2. Complete the handshake, with the unbuffered API: what it does not consume stays in the
///    caller's buffer. The buffered API reads ahead, and what it has read is lost.
/// 3. Send what rustls still has to send (such as tickets), and read what it has decrypted.
/// 4. If [`Suite::of`] the negotiated suite is `None`, continue with rustls.
/// 5. Call the connection's `dangerous_into_kernel_connection`, pass the secrets to
///    [`into_record_layer`](Self::into_record_layer), and the bytes that rustls did not consume to
///    [`RecordLayer::hold`].
///
/// Step 5 can also follow later, between records.
#[derive(Debug)]
pub struct HandshakeSecrets {
    role: Role,
    capture: Arc<Capture>,
}

/// Why a connection cannot be taken over. It is lost then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// The handshake is not complete, or is not one of TLS 1.3.
    #[error("the handshake has no TLS 1.3 traffic secrets")]
    NoSecrets,
    /// The cipher suite is not one of [`Suite`].
    #[error("the cipher suite is not supported")]
    UnsupportedSuite,
    /// The keys do not follow from the secrets. Likely cause: they are those of another connection.
    #[error("the keys do not belong to the handshake")]
    ForeignKeys,
    /// rustls has just changed its keys for sending, and may not have announced that yet. Send data
    /// with rustls before the connection is taken over.
    #[error("a key update may not have been sent yet")]
    UnsentKeyUpdate,
    /// The sequence numbers are out of range.
    #[error(transparent)]
    Invalid(#[from] InvalidState),
}

impl HandshakeSecrets {
    /// Prepares for a connection as a client.
    pub fn client(config: &ClientConfig) -> (Self, Arc<ClientConfig>) {
        let mut config = config.clone();
        config.enable_secret_extraction = true;
        let capture = Capture::install(&mut config.key_log);
        let role = Role::Client;
        (Self { role, capture }, Arc::new(config))
    }

    /// Prepares for a connection as a server.
    pub fn server(config: &ServerConfig) -> (Self, Arc<ServerConfig>) {
        let mut config = config.clone();
        config.enable_secret_extraction = true;
        let capture = Capture::install(&mut config.key_log);
        let role = Role::Server;
        (Self { role, capture }, Arc::new(config))
    }

    /// Continues the connection whose secrets rustls has returned.
    ///
    /// # Errors
    /// Returns [`HandoverError`] if that is not possible.
    pub fn into_record_layer(
        self,
        extracted: ExtractedSecrets,
    ) -> Result<RecordLayer, HandoverError> {
        let captured = std::mem::take(&mut *self.capture.secrets.lock());
        let (Some(client), Some(server)) = (captured.client, captured.server) else {
            return Err(HandoverError::NoSecrets);
        };
        let suite = match extracted.tx.1 {
            ConnectionTrafficSecrets::Aes128Gcm { .. } => Suite::Aes128GcmSha256,
            ConnectionTrafficSecrets::Aes256Gcm { .. } => Suite::Aes256GcmSha384,
            _ => return Err(HandoverError::UnsupportedSuite),
        };
        let (tx, rx) = match self.role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        };
        let (tx, key_updates) = current(suite, tx, extracted.tx)?;
        let (rx, _) = current(suite, rx, extracted.rx)?;
        if key_updates > 0 && tx.sequence == 0 {
            return Err(HandoverError::UnsentKeyUpdate);
        }
        Ok(RecordState::new(suite, self.role, tx, rx).thaw()?)
    }
}

/// Finds the generation of the secret that the current key belongs to.
fn current(
    suite: Suite,
    mut secret: TrafficSecret,
    (sequence, keys): (u64, ConnectionTrafficSecrets),
) -> Result<(Direction, usize), HandoverError> {
    let (ConnectionTrafficSecrets::Aes128Gcm { key, .. }
    | ConnectionTrafficSecrets::Aes256Gcm { key, .. }) = keys
    else {
        return Err(HandoverError::UnsupportedSuite);
    };
    if !secret.has_length_for(suite) {
        return Err(HandoverError::ForeignKeys);
    }
    for generation in 0..=MAX_KEY_UPDATES {
        if *secret.expand(suite, b"key", suite.aead().key_len()) == key.as_ref() {
            return Ok((Direction::new(secret, sequence), generation));
        }
        secret = secret.next(suite);
    }
    Err(HandoverError::ForeignKeys)
}

#[derive(Default)]
struct Captured {
    client: Option<TrafficSecret>,
    server: Option<TrafficSecret>,
}

/// Keeps the two traffic secrets, and passes on what the original key log is interested in.
struct Capture {
    secrets: Mutex<Captured>,
    original: Arc<dyn KeyLog>,
}

impl Capture {
    fn install(key_log: &mut Arc<dyn KeyLog>) -> Arc<Self> {
        let capture = Arc::new(Self {
            secrets: Mutex::default(),
            original: key_log.clone(),
        });
        *key_log = capture.clone();
        capture
    }
}

impl KeyLog for Capture {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        match label {
            CLIENT_SECRET => self.secrets.lock().client = Some(TrafficSecret::new(secret)),
            SERVER_SECRET => self.secrets.lock().server = Some(TrafficSecret::new(secret)),
            _ => {}
        }
        if self.original.will_log(label) {
            self.original.log(label, client_random, secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT_SECRET | SERVER_SECRET) || self.original.will_log(label)
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}
