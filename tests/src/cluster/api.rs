//! A client of the Kubernetes API: objects are JSON, and every one of them is applied by the server.

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

/// A client with a token, in a namespace from where the server is reached.
#[derive(Debug)]
pub struct Api {
    netns: NetNs,
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    token: String,
}

/// Why a request was not done: the server's status, or 0 when it was not reached, and what it says.
#[derive(Debug)]
pub struct Refused {
    /// HTTP's.
    pub status: u16,
    /// The server's, or the connection's.
    pub message: String,
}

impl Api {
    /// A client that trusts this root.
    pub fn new(netns: &NetNs, server: SocketAddr, root: &str, token: &str) -> Self {
        let tls = Arc::new(trusting(root));
        Self { netns: netns.try_clone().unwrap(), server, tls, token: token.to_owned() }
    }

    /// Reads an object, or a list.
    ///
    /// # Errors
    /// The server's.
    pub fn get(&self, path: &str) -> Result<Value, Refused> {
        self.request("GET", path, "application/json", "")
    }

    /// Makes an object as it is told, whether it is there already or not, and returns it as it is then.
    ///
    /// # Errors
    /// The server's.
    pub fn apply(&self, object: &Value) -> Result<Value, Refused> {
        let path = format!("{}?fieldManager=tests&force=true", path(object));
        self.request("PATCH", &path, "application/apply-patch+yaml", &object.to_string()) // JSON is YAML
    }

    /// Changes fields of an object; `null` removes one.
    ///
    /// # Errors
    /// The server's.
    pub fn patch(&self, path: &str, change: &Value) -> Result<Value, Refused> {
        self.request("PATCH", path, "application/merge-patch+json", &change.to_string())
    }

    /// Makes what has no name of its own, such as a token.
    ///
    /// # Errors
    /// The server's.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, Refused> {
        self.request("POST", path, "application/json", &object.to_string())
    }

    /// Deletes an object, at once.
    ///
    /// # Errors
    /// The server's.
    pub fn delete(&self, path: &str) -> Result<Value, Refused> {
        self.request("DELETE", &format!("{path}?gracePeriodSeconds=0"), "application/json", "")
    }

    /// A token of a service account; bound to a pod, if one is told, by its name and uid.
    ///
    /// # Errors
    /// The server's.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<(&str, &str)>,
    ) -> Result<String, Refused> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let bound = pod.map(|(name, uid)| json!({ "kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid }));
        let audiences: Vec<_> = audience.into_iter().collect();
        let spec = json!({ "audiences": audiences, "boundObjectRef": bound, "expirationSeconds": 86400 });
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let made = self.create(&path, &request)?;
        Ok(made["status"]["token"].as_str().unwrap_or_default().to_owned())
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<Value, Refused> {
        let headers = [
            format!("Host: {}", self.server),
            format!("Authorization: Bearer {}", self.token),
            format!("Content-Type: {kind}"),
        ];
        let answer = connect_tls(&self.netns, self.server, &self.tls, self.server.ip().into())
            .and_then(|mut stream| exchange(&mut stream, &format!("{method} {path}"), &headers, body));
        match answer {
            Ok((200..300, body)) => Ok(serde_json::from_str(&body).unwrap_or(Value::String(body))),
            Ok((status, message)) => Err(Refused { status, message }),
            Err(why) => Err(Refused { status: 0, message: why.to_string() }),
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
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    builder.with_root_certificates(store).with_no_client_auth()
}

/// Connects from within a namespace, and shakes hands.
///
/// # Errors
/// Those of the connection, and `InvalidData` for a server that is not who it should be.
pub fn connect_tls(
    netns: &NetNs,
    server: SocketAddr,
    tls: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let stream = netns.run(|| TcpStream::connect_timeout(&server, PATIENCE)).map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
    let mut stream = stream;
    session.complete_io(&mut stream)?;
    Ok(StreamOwned::new(session, stream))
}

/// Where the API has an object: its plural is the kind with an `s`, as far as the kinds of these tests go.
pub fn path(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let [version, kind, name] = ["/apiVersion", "/kind", "/metadata/name"].map(|p| text(p).unwrap());
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = match kind.to_lowercase() {
        k if k.ends_with('y') => format!("{}ies", &k[..k.len() - 1]),
        k if k.ends_with('s') => format!("{k}es"),
        k => format!("{k}s"),
    };
    let namespace = text("/metadata/namespace").map(|n| format!("namespaces/{n}/")).unwrap_or_default();
    format!("/{root}/{version}/{namespace}{plural}/{name}")
}
