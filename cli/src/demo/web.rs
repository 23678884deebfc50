//! A web client inside a pod: plain sockets, as an application has them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use netns::NetNs;

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const READ_DEADLINE: Duration = Duration::from_secs(3);

/// An open connection to a web server.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from within a pod.
    pub(crate) fn open(from: &NetNs, ip: IpAddr, port: u16) -> io::Result<Self> {
        let to = SocketAddr::new(ip, port);
        let stream = from.run(|| TcpStream::connect_timeout(&to, CONNECT_DEADLINE)).map_err(io::Error::other)??;
        stream.set_read_timeout(Some(READ_DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// One request with a text in it, and the body of its answer.
    pub(crate) fn get(&mut self, text: &str) -> io::Result<String> {
        write!(self.reader.get_mut(), "GET /{text} HTTP/1.1\r\nHost: server\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
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

/// A request on a connection of its own.
pub(crate) fn get(from: &NetNs, ip: IpAddr, port: u16, text: &str) -> io::Result<String> {
    Connection::open(from, ip, port)?.get(text)
}
