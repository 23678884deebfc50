//! An HTTP client inside a pod, with plain sockets like an application.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use netns::NetNs;

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const READ_DEADLINE: Duration = Duration::from_secs(3);

/// An open connection to a web server.
pub(crate) struct HttpConnection {
    reader: BufReader<TcpStream>,
}

impl HttpConnection {
    /// Connects from within a pod.
    pub(crate) fn open(from: &NetNs, ip: IpAddr, port: u16) -> io::Result<Self> {
        let to = SocketAddr::new(ip, port);
        let stream = from
            .run(|| TcpStream::connect_timeout(&to, CONNECT_DEADLINE))
            .map_err(io::Error::other)??;
        stream.set_read_timeout(Some(READ_DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Sends a request with a text in its path and returns the body of the response.
    pub(crate) fn get(&mut self, text: &str) -> io::Result<String> {
        let stream = self.reader.get_mut();
        write!(stream, "GET /{text} HTTP/1.1\r\nHost: server\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                let kind = io::ErrorKind::UnexpectedEof;
                return Err(io::Error::new(kind, "the connection was closed"));
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }
}
