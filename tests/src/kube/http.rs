//! HTTP requests that a test sends from within a pod or a node, like a program there.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use netns::NetNs;

use crate::sandbox::PATIENCE;

/// A request without a body.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method, such as GET.
    pub method: &'a str,
    /// The host name in the request.
    pub host: &'a str,
    /// The path.
    pub path: &'a str,
    /// More header lines.
    pub headers: &'a [&'a str],
}

/// A GET request.
pub const GET: Request<'static> = Request {
    method: "GET",
    host: "web",
    path: "/",
    headers: &[],
};

/// A response.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header lines, in lower case.
    pub headers: Vec<String>,
    /// The body.
    pub body: String,
}

impl Response {
    /// Whether an Envoy has passed it on.
    pub fn is_envoys(&self) -> bool {
        self.headers
            .iter()
            .any(|h| h == "server: istio-envoy" || h == "server: envoy")
    }
}

/// An open connection.
#[derive(Debug)]
pub struct HttpConnection(BufReader<TcpStream>);

impl HttpConnection {
    /// Connects from within a network namespace.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn open(from: &NetNs, to: &str) -> io::Result<Self> {
        let to: SocketAddr = to.parse().map_err(io::Error::other)?;
        let connect = || TcpStream::connect_timeout(&to, PATIENCE);
        let stream = from.run(connect).map_err(io::Error::other)??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and reads the response.
    ///
    /// # Errors
    /// Those of the connection, and `InvalidData` for anything that is not a response with a
    /// length.
    pub fn request(&mut self, request: &Request<'_>) -> io::Result<Response> {
        let Request {
            method, host, path, ..
        } = request;
        let headers = request.headers.iter();
        let headers: String = headers.map(|line| format!("{line}\r\n")).collect();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let status = lines
            .first()
            .and_then(|l| l.split(' ').nth(1)?.parse().ok());
        let length = |line: &String| line.strip_prefix("content-length: ")?.parse().ok();
        let (Some(status), length) = (status, lines.iter().find_map(length)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, lines.join("\n")));
        };
        let mut body = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut body)?;
        Ok(Response {
            status,
            headers: lines,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// Whether the other end has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let stream = self.0.get_mut();
        stream.set_nonblocking(true).unwrap();
        let read = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        !matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Sends a request on a new connection.
///
/// # Errors
/// As [`HttpConnection::open`] and [`HttpConnection::request`].
pub fn request(from: &NetNs, to: &str, request: &Request<'_>) -> io::Result<Response> {
    HttpConnection::open(from, to)?.request(request)
}
