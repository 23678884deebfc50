//! A client of the Kubernetes API. Objects are JSON and are written by server-side apply.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use netns::NetNs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::http::exchange;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client with a token, in a network namespace that reaches the server.
#[derive(Debug)]
pub struct Api {
    netns: NetNs,
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    token: String,
}

/// A failed request: the server's status, or 0 when the server was not reached, and the reason.
#[derive(Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// The error of the server or of the connection.
    pub message: String,
}

impl Api {
    /// A client that trusts this root.
    pub fn new(netns: &NetNs, server: SocketAddr, root: &str, token: &str) -> Self {
        let tls = Arc::new(trusting(root));
        Self {
            netns: netns.try_clone().unwrap(),
            server,
            tls,
            token: token.to_owned(),
        }
    }

    /// A client of the same server with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            netns: self.netns.try_clone().unwrap(),
            server: self.server,
            tls: self.tls.clone(),
            token: token.to_owned(),
        }
    }

    /// Reads an object, or a list.
    ///
    /// # Errors
    /// The server's error.
    pub fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.request("GET", path, "application/json", "")
    }

    /// Creates or updates an object, and returns the result.
    ///
    /// # Errors
    /// The server's error.
    pub fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let path = format!("{}?fieldManager=tests&force=true", path(object));
        self.request(
            "PATCH",
            &path,
            "application/apply-patch+yaml",
            &object.to_string(),
        ) // JSON is YAML
    }

    /// Changes fields of an object; `null` removes one.
    ///
    /// # Errors
    /// The server's error.
    pub fn patch(&self, path: &str, change: &Value) -> Result<Value, ApiError> {
        self.request(
            "PATCH",
            path,
            "application/merge-patch+json",
            &change.to_string(),
        )
    }

    /// Creates an object without a name, such as a token request.
    ///
    /// # Errors
    /// The server's error.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.request("POST", path, "application/json", &object.to_string())
    }

    /// Deletes an object without a grace period.
    ///
    /// # Errors
    /// The server's error.
    pub fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.request(
            "DELETE",
            &format!("{path}?gracePeriodSeconds=0"),
            "application/json",
            "",
        )
    }

    /// A token of a service account; bound to a pod, if given, by name and uid.
    ///
    /// # Errors
    /// The server's error.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<(&str, &str)>,
    ) -> Result<String, ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let bound = pod.map(
            |(name, uid)| json!({ "kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid }),
        );
        let audiences: Vec<_> = audience.into_iter().collect();
        let spec =
            json!({ "audiences": audiences, "boundObjectRef": bound, "expirationSeconds": 86400 });
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": spec,
        });
        let made = self.create(&path, &request)?;
        Ok(made["status"]["token"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<Value, ApiError> {
        let headers = [
            format!("Host: {}", self.server),
            format!("Authorization: Bearer {}", self.token),
            format!("Content-Type: {kind}"),
        ];
        let answer = connect_tls(&self.netns, self.server, &self.tls, self.server.ip().into())
            .and_then(|mut stream| {
                exchange(&mut stream, &format!("{method} {path}"), &headers, body)
            });
        match answer {
            Ok((200..300, body)) => Ok(serde_json::from_str(&body).unwrap_or(Value::String(body))),
            Ok((status, message)) => Err(ApiError { status, message }),
            Err(why) => Err(ApiError {
                status: 0,
                message: why.to_string(),
            }),
        }
    }
}

/// A TLS client's configuration with these roots (PEM).
pub fn trusting(roots: &str) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    builder.with_root_certificates(store).with_no_client_auth()
}

/// Connects from within a namespace and completes the TLS handshake.
///
/// # Errors
/// Errors of the connection, and `InvalidData` for a server that is not trusted.
pub fn connect_tls(
    netns: &NetNs,
    server: SocketAddr,
    tls: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let stream = netns
        .run(|| TcpStream::connect_timeout(&server, PATIENCE))
        .map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
    let mut stream = stream;
    session.complete_io(&mut stream)?;
    Ok(StreamOwned::new(session, stream))
}

/// The API path of an object. The plural is derived from the kind, for the kinds of these tests.
pub fn path(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let [version, kind, name] =
        ["/apiVersion", "/kind", "/metadata/name"].map(|p| text(p).unwrap());
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = match kind.to_lowercase() {
        k if k.ends_with('y') => format!("{}ies", &k[..k.len() - 1]),
        k if k.ends_with('s') => format!("{k}es"),
        k => format!("{k}s"),
    };
    let namespace = text("/metadata/namespace")
        .map(|n| format!("namespaces/{n}/"))
        .unwrap_or_default();
    format!("/{root}/{version}/{namespace}{plural}/{name}")
}
