//! A name server as small as can be, which notes who asked it what; and a client.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use netns::NetNs;

use crate::sandbox::PATIENCE;

/// What it answers to every question for an address.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// A name that it never answers.
pub const SILENT: &str = "silent.example.";
/// Names that begin with their address, such as `10-77-1-4.ip.example`.
pub const BY_ADDRESS: &str = ".ip.example.";
/// A name with more addresses than UDP carries.
pub const LARGE: &str = "large.example.";
/// A name that it does not know.
pub const UNKNOWN: &str = "unknown.example.";
/// A zone that is transferred in three messages.
pub const ZONE: &str = "zone.example.";

/// A query that arrived: from whom, and its bytes.
pub type Seen = (IpAddr, Vec<u8>);

/// A name server on port 53 of these addresses, over UDP and TCP. It answers until the process ends.
#[derive(Debug, Clone)]
pub struct NameServer(Arc<Mutex<Vec<Seen>>>);

impl NameServer {
    /// Listens and answers, in threads of its own.
    pub fn start(netns: &NetNs, addresses: &[IpAddr]) -> Self {
        let server = Self(Arc::default());
        for ip in addresses {
            let bind = || (UdpSocket::bind((*ip, 53)).unwrap(), TcpListener::bind((*ip, 53)).unwrap());
            let (udp, tcp) = netns.run(bind).unwrap();
            let this = server.clone();
            std::thread::spawn(move || this.serve_udp(&udp));
            let this = server.clone();
            std::thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let this = this.clone();
                    std::thread::spawn(move || this.serve_tcp(stream));
                }
            });
        }
        server
    }

    /// What has arrived since this was last asked.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn note(&self, from: SocketAddr, bytes: &[u8]) -> Option<Message> {
        self.0.lock().unwrap().push((from.ip(), bytes.to_vec()));
        Message::from_vec(bytes).ok()
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Some(query) = self.note(from, &buffer[..length]) else { continue };
            for answer in answers(&query) {
                let answer = if answer.answers.len() > 100 { answer.truncate() } else { answer };
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        }
    }

    fn serve_tcp(&self, mut stream: TcpStream) -> io::Result<()> {
        let from = stream.peer_addr()?;
        loop {
            let Some(query) = self.note(from, &read_message(&mut stream)?) else { return Ok(()) };
            for answer in answers(&query) {
                write_message(&mut stream, &answer.to_vec().unwrap())?;
            }
        }
    }
}

fn answers(query: &Message) -> Vec<Message> {
    let Some(asked) = query.queries.first() else { return vec![] };
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&query.metadata);
    answer.add_query(asked.clone());
    let record = |ip: Ipv4Addr| Record::from_rdata(asked.name().clone(), 60, RData::A(A(ip)));
    let written = |name: &str| name.strip_suffix(BY_ADDRESS)?.replace('-', ".").parse().ok();
    match asked.name().to_ascii().as_str() {
        name if name.ends_with(BY_ADDRESS) && asked.query_type() == RecordType::A => {
            answer.add_answers(written(name).map(record));
        }
        name if name.ends_with(BY_ADDRESS) => {}
        SILENT => return vec![],
        UNKNOWN => answer.metadata.response_code = ResponseCode::NXDomain,
        _ if asked.query_type() == RecordType::HTTPS => answer.metadata.response_code = ResponseCode::NXDomain,
        LARGE => {
            answer.add_answers((0..200).map(|i| record(Ipv4Addr::new(198, 51, 100, i))));
        }
        ZONE => {
            answer.add_answer(record(ANSWER));
            return vec![answer; 3];
        }
        _ => {
            answer.add_answer(record(ANSWER));
        }
    }
    vec![answer]
}

/// A query.
pub fn query(name: &str, kind: RecordType) -> Message {
    static IDS: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
    let id = IDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// A socket of an application that takes only what comes from this name server.
pub fn udp_client(netns: &NetNs, server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let connect = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        io::Result::Ok(socket)
    };
    let socket = netns.run(connect).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Asks over UDP.
///
/// # Errors
/// Those of the socket; `WouldBlock` when nothing comes in time.
pub fn ask_udp(netns: &NetNs, server: SocketAddr, query: &Message) -> io::Result<Message> {
    let socket = udp_client(netns, server);
    socket.send(&query.to_vec().unwrap())?;
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).unwrap())
}

/// Asks over TCP.
///
/// # Errors
/// Those of the connection.
pub fn ask_tcp(netns: &NetNs, server: SocketAddr, query: &Message) -> io::Result<Message> {
    let mut stream = crate::sandbox::connect(netns, server)?;
    write_message(&mut stream, &query.to_vec().unwrap())?;
    Ok(Message::from_vec(&read_message(&mut stream)?).unwrap())
}

/// Writes one message to a connection, with its length before it.
///
/// # Errors
/// Those of write(2).
pub fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat())
}

/// Reads one.
///
/// # Errors
/// Those of read(2), and when the connection ends before a whole message.
pub fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The addresses of an answer, as text.
pub fn addresses(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|r| r.data.to_string()).collect()
}

/// Long enough for a wrong answer to come.
pub const A_WHILE: Duration = Duration::from_millis(300);
