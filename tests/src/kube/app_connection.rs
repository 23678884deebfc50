//! Connections that a test opens from within a pod, like the pod's application and without a
//! kubelet.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use netns::NetNs;

use super::Kube;
use crate::sandbox::PATIENCE;

/// An open connection to an application.
#[derive(Debug)]
pub struct AppConnection(TcpStream);

impl Kube {
    /// The network namespace of a running pod.
    pub fn netns_of(&self, namespace: &str, pod: &str) -> NetNs {
        let object = self.pod(namespace, pod).unwrap();
        let node = self.node(object["spec"]["nodeName"].as_str().unwrap());
        let process = self.process_of(namespace, pod);
        NetNs::open(node.path(&format!("/proc/{process}/ns/net"))).unwrap()
    }

    /// Opens a connection from within a pod and exchanges one request.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn connect(&self, namespace: &str, pod: &str, to: &str) -> io::Result<AppConnection> {
        AppConnection::open(&self.netns_of(namespace, pod), to)
    }
}

impl AppConnection {
    /// Opens a connection from within a network namespace and exchanges one request.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn open(netns: &NetNs, to: &str) -> io::Result<Self> {
        let to: SocketAddr = to.parse().map_err(io::Error::other)?;
        let stream = netns
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))
            .map_err(io::Error::other)??;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Self(stream);
        connection.ask()?;
        Ok(connection)
    }

    /// Sends a request; returns the response.
    ///
    /// # Errors
    /// Those of the connection, and `UnexpectedEof` when it is closed.
    pub fn ask(&mut self) -> io::Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
        let mut answer = vec![0; 4096];
        match self.0.read(&mut answer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
        }
    }
}
