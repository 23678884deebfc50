//! A minimal name server that records its queries, and a client.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use netns::NetNs;

use crate::sandbox::PATIENCE;

/// The address in its answers, unless the name says otherwise.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// A name for which it never replies.
pub const SILENT: &str = "silent.example.";
/// Suffix of names that contain their address, such as `10-77-1-4.ip.example`.
pub const BY_ADDRESS: &str = ".ip.example.";
/// Suffix of names like those of [`BY_ADDRESS`], with a TTL of one second.
pub const BRIEF: &str = ".brief.example.";
/// A name with answers that end within a record.
pub const DAMAGED: &str = "damaged.example.";
/// A name with more addresses than fit into a UDP message.
pub const LARGE: &str = "large.example.";
/// A name of which the first query over UDP is lost.
pub const LOST: &str = "lost.example.";
/// A name that has [`ANSWER`] for a second, and then [`LATER_ANSWER`], over TCP after 3 s.
pub const SLOW: &str = "slow.example.";
/// The later answer to [`SLOW`].
pub const LATER_ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
/// How long the later answer to [`SLOW`] takes: more than a client waits if it has an expired one.
const LATE: Duration = Duration::from_secs(3);
/// A name that is answered over TCP only while the name server does not hold.
pub const HELD: &str = "held.example.";
/// A name of which the first query over TCP closes its connection.
pub const CLOSING: &str = "closing.example.";
/// A name that the name server at an IPv4 address cannot resolve.
pub const FAILS_BY_IPV4: &str = "fails-by-ipv4.example.";
/// A name that does not exist.
pub const UNKNOWN: &str = "unknown.example.";
/// A zone that is transferred in three messages.
pub const ZONE: &str = "zone.example.";

/// A received query: the sender's address and the message.
pub type ReceivedQuery = (IpAddr, Vec<u8>);

/// A name server on port 53 of some addresses, over UDP and TCP. It runs until the process exits.
#[derive(Debug, Clone)]
pub struct NameServer {
    seen: Arc<Mutex<Vec<ReceivedQuery>>>,
    is_failing: Arc<AtomicBool>,
    is_slow: Arc<AtomicBool>,
    is_holding: Arc<AtomicBool>,
    has_closed: Arc<AtomicBool>,
}

impl NameServer {
    /// Listens and answers in background threads.
    pub fn start(netns: &NetNs, addresses: &[IpAddr]) -> Self {
        let server = Self {
            seen: Arc::default(),
            is_failing: Arc::default(),
            is_slow: Arc::default(),
            is_holding: Arc::default(),
            has_closed: Arc::default(),
        };
        for ip in addresses {
            let bind = || {
                (
                    UdpSocket::bind((*ip, 53)).unwrap(),
                    TcpListener::bind((*ip, 53)).unwrap(),
                )
            };
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

    /// The queries received since the last call.
    pub fn seen(&self) -> Vec<ReceivedQuery> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Makes it answer every query with SERVFAIL, or as usual again.
    pub fn set_failing(&self, failing: bool) {
        self.is_failing.store(failing, Ordering::Relaxed);
    }

    /// Makes it hold the answers to [`HELD`], or send them.
    pub fn set_holding(&self, holding: bool) {
        self.is_holding.store(holding, Ordering::Relaxed);
    }

    /// Records a query; one that is sent again, with the same id, is recorded once. Returns it, and
    /// whether it was sent again.
    fn record(&self, from: SocketAddr, bytes: &[u8]) -> Option<(Message, bool)> {
        let received = (from.ip(), bytes.to_vec());
        let mut seen = self.seen.lock().unwrap();
        let is_repeated = seen.contains(&received);
        if !is_repeated {
            seen.push(received);
        }
        Some((Message::from_vec(bytes).ok()?, is_repeated))
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Some((query, is_repeated)) = self.record(from, &buffer[..length]) else {
                continue;
            };
            let is_lost = |q: &Query| q.name().to_ascii() == LOST;
            if !is_repeated && query.queries.first().is_some_and(is_lost) {
                continue;
            }
            let fails = |q: &Query| q.name().to_ascii() == FAILS_BY_IPV4;
            let fails = from.is_ipv4() && query.queries.first().is_some_and(fails);
            for mut answer in self.answers(&query) {
                if fails {
                    fail(&mut answer);
                }
                let answer = if answer.answers.len() > 100 {
                    answer.truncate()
                } else {
                    answer
                };
                socket.send_to(&encoded(&query, &answer), from).unwrap();
            }
        }
    }

    fn serve_tcp(&self, mut stream: TcpStream) -> io::Result<()> {
        let from = stream.peer_addr()?;
        loop {
            let Some((query, _)) = self.record(from, &read_message(&mut stream)?) else {
                return Ok(());
            };
            let is = |name: &str| {
                let first = query.queries.first();
                first.is_some_and(|q| q.name().to_ascii() == name)
            };
            if is(CLOSING) && !self.has_closed.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            while is(HELD) && self.is_holding.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let is_slow = is(SLOW);
            let mut answers = self.answers(&query);
            if is_slow && self.is_slow.swap(true, Ordering::Relaxed) {
                std::thread::sleep(LATE);
                for record in answers.iter_mut().flat_map(|answer| &mut answer.answers) {
                    (record.data, record.ttl) = (RData::A(A(LATER_ANSWER)), 60);
                }
            }
            for answer in answers {
                write_message(&mut stream, &encoded(&query, &answer))?;
            }
        }
    }

    fn answers(&self, query: &Message) -> Vec<Message> {
        let mut all = answers(query);
        if self.is_failing.load(Ordering::Relaxed) {
            all.iter_mut().for_each(fail);
        }
        all
    }
}

fn fail(answer: &mut Message) {
    answer.answers.clear();
    answer.metadata.response_code = ResponseCode::ServFail;
}

fn encoded(query: &Message, answer: &Message) -> Vec<u8> {
    let mut bytes = answer.to_vec().unwrap();
    if query.queries[0].name().to_ascii() == DAMAGED {
        bytes.pop();
    }
    bytes
}

fn answers(query: &Message) -> Vec<Message> {
    let Some(question) = query.queries.first() else {
        return vec![];
    };
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&query.metadata);
    answer.add_query(question.clone());
    let name = question.name().to_ascii();
    let ttl = if name.ends_with(BRIEF) || name == SLOW {
        1
    } else {
        60
    };
    let record = |ip: Ipv4Addr| Record::from_rdata(question.name().clone(), ttl, RData::A(A(ip)));
    let by_address = |name: &str| name.ends_with(BY_ADDRESS) || name.ends_with(BRIEF);
    let address_in = |name: &str| {
        name.strip_suffix(BY_ADDRESS)
            .or(name.strip_suffix(BRIEF))?
            .replace('-', ".")
            .parse()
            .ok()
    };
    match name.as_str() {
        name if by_address(name) && question.query_type() == RecordType::A => {
            answer.add_answers(address_in(name).map(record));
        }
        name if by_address(name) => {}
        SILENT => return vec![],
        name if name.ends_with(".other.") => answer.metadata.response_code = ResponseCode::NXDomain,
        UNKNOWN => answer.metadata.response_code = ResponseCode::NXDomain,
        _ if question.query_type() == RecordType::HTTPS => {
            answer.metadata.response_code = ResponseCode::NXDomain
        }
        _ if question.query_type() == RecordType::SRV => {
            let target = Name::from_ascii("target.example.").unwrap();
            let service = RData::SRV(SRV::new(1, 2, 5060, target.clone()));
            answer.add_answer(Record::from_rdata(question.name().clone(), ttl, service));
            answer.add_additional(Record::from_rdata(target, ttl, RData::A(A(ANSWER))));
        }
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

/// Creates a query.
pub fn query(name: &str, kind: RecordType) -> Message {
    static IDS: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
    let id = IDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// An application's socket, connected to this name server.
pub fn udp_client(netns: &NetNs, server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let connect = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        io::Result::Ok(socket)
    };
    let socket = netns.run(connect).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a query over UDP and receives the answer.
///
/// # Errors
/// Those of the socket; `WouldBlock` after [`PATIENCE`] without an answer.
pub fn ask_udp(netns: &NetNs, server: SocketAddr, query: &Message) -> io::Result<Message> {
    let socket = udp_client(netns, server);
    socket.send(&query.to_vec().unwrap())?;
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).unwrap())
}

/// Sends a query over TCP and receives the answer.
///
/// # Errors
/// Those of the connection.
pub fn ask_tcp(netns: &NetNs, server: SocketAddr, query: &Message) -> io::Result<Message> {
    let mut stream = crate::sandbox::connect(netns, server)?;
    write_message(&mut stream, &query.to_vec().unwrap())?;
    Ok(Message::from_vec(&read_message(&mut stream)?).unwrap())
}

/// Writes one length-prefixed message to a connection.
///
/// # Errors
/// Those of write(2).
pub fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat())
}

/// Reads one length-prefixed message.
///
/// # Errors
/// Those of read(2), and `UnexpectedEof` when the connection is closed within the message.
pub fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The records of an answer, as text.
pub fn addresses(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|r| r.data.to_string()).collect()
}

/// How long to wait before concluding that no answer arrives.
pub const NO_ANSWER_WAIT: Duration = Duration::from_millis(300);
