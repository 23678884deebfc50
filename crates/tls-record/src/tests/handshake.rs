//! Handshakes with rustls, whose connections are then taken over.

use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ExtractedSecrets, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};

use crate::{HandoverError, HandshakeSecrets, RecordLayer};

/// A certificate in files, which are deleted with it.
pub(super) struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    pub(super) fn generate() -> Self {
        let folder = tempfile::tempdir().unwrap();
        identity::LocalCa::open(folder.path()).unwrap();
        Self { folder }
    }

    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("ca-cert.pem")
    }

    pub(super) fn key_file(&self) -> PathBuf {
        self.folder.path().join("ca-key.pem")
    }
}

fn provider(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![suite];
    Arc::new(provider)
}

pub(super) fn client_config(suite: SupportedCipherSuite) -> ClientConfig {
    let provider = provider(suite);
    ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[if suite.tls13().is_some() {
            &TLS13
        } else {
            &TLS12
        }])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth()
}

pub(super) fn server_config(suite: SupportedCipherSuite) -> ServerConfig {
    let certificate = Certificate::generate();
    let chain = vec![CertificateDer::from_pem_file(certificate.file()).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificate.key_file()).unwrap();
    ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[if suite.tls13().is_some() {
            &TLS13
        } else {
            &TLS12
        }])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

pub(super) fn server_name() -> ServerName<'static> {
    "peer.test".try_into().unwrap()
}

/// The way to the other end.
pub(super) trait Transport {
    fn send(&mut self, bytes: &[u8]);
    /// Returns what the other end has sent: at least one byte, unless it waits.
    fn receive(&mut self) -> Vec<u8>;
}

impl Transport for TcpStream {
    fn send(&mut self, bytes: &[u8]) {
        std::io::Write::write_all(self, bytes).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 16];
        let length = std::io::Read::read(self, &mut buffer).unwrap();
        assert!(length > 0, "the peer closed the connection");
        buffer.truncate(length);
        buffer
    }
}

/// What the two unbuffered connections of rustls have in common.
pub(super) trait Unbuffered {
    type Data;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn extract(self) -> Result<ExtractedSecrets, Error>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn extract(self) -> Result<ExtractedSecrets, Error> {
        Ok(self.dangerous_into_kernel_connection()?.0)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn extract(self) -> Result<ExtractedSecrets, Error> {
        Ok(self.dangerous_into_kernel_connection()?.0)
    }
}

/// A rustls connection that will be taken over.
pub(super) struct Handshake<C> {
    connection: C,
    secrets: HandshakeSecrets,
    /// What rustls has not consumed yet.
    pub(super) input: Vec<u8>,
}

impl Handshake<UnbufferedClientConnection> {
    pub(super) fn client(config: &ClientConfig) -> Self {
        let (secrets, config) = HandshakeSecrets::client(config);
        Self {
            connection: UnbufferedClientConnection::new(config, server_name()).unwrap(),
            secrets,
            input: Vec::new(),
        }
    }
}

impl Handshake<UnbufferedServerConnection> {
    pub(super) fn server(config: &ServerConfig) -> Self {
        let (secrets, config) = HandshakeSecrets::server(config);
        Self {
            connection: UnbufferedServerConnection::new(config).unwrap(),
            secrets,
            input: Vec::new(),
        }
    }
}

impl<C: Unbuffered> Handshake<C> {
    /// Completes the handshake, processes the input, and sends data. Returns the received data.
    pub(super) fn turn(&mut self, data: &[u8], transport: &mut impl Transport) -> Vec<u8> {
        let mut received = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (mut is_blocked, mut is_done) = (false, false);
            let UnbufferedStatus { discard, state, .. } = self.connection.process(&mut self.input);
            match state.unwrap() {
                ConnectionState::EncodeTlsData(mut message) => {
                    let length = message.encode(&mut buffer).unwrap();
                    transport.send(&buffer[..length]);
                }
                ConnectionState::TransmitTlsData(sent) => sent.done(),
                ConnectionState::BlockedHandshake => is_blocked = true,
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        received.extend_from_slice(record.unwrap().payload);
                    }
                }
                ConnectionState::WriteTraffic(mut writer) => {
                    if !data.is_empty() {
                        let length = writer.encrypt(data, &mut buffer).unwrap();
                        transport.send(&buffer[..length]);
                    }
                    is_done = true;
                }
                other => panic!("{other:?}"),
            }
            self.input.drain(..discard);
            if is_done {
                return received;
            }
            if is_blocked {
                let bytes = transport.receive();
                assert!(!bytes.is_empty(), "both ends wait");
                self.input.extend(bytes);
            }
        }
    }

    pub(super) fn take_over(self) -> Result<RecordLayer, HandoverError> {
        let extracted = self.connection.extract().unwrap();
        let mut layer = self.secrets.into_record_layer(extracted)?;
        layer.hold(&self.input);
        Ok(layer)
    }

    /// Takes over a connection with the secrets of another.
    pub(super) fn take_over_with(self, other: Self) -> Result<RecordLayer, HandoverError> {
        let extracted = self.connection.extract().unwrap();
        other.secrets.into_record_layer(extracted)
    }
}

/// Accepts any certificate whose key the server proves to have.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
