//! Captures packets between the nodes with a packet socket, independently of Underpass.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use anyhow::{Context, ensure};
use netns::NetNs;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// A packet capture on the fabric.
pub(crate) struct PacketCapture {
    socket: Socket,
}

/// Captured TCP traffic.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
    /// The TCP payloads, concatenated.
    pub(crate) payload: Vec<u8>,
    /// Number of payloads that start with a TLS 1.x record: handshake, alert or application data.
    pub(crate) tls_records: usize,
    /// Number of payloads outside tunnels, on ports other than 15008.
    pub(crate) plain_packets: usize,
}

impl PacketCapture {
    /// Starts a capture; the socket buffers packets until they are read.
    pub(crate) fn start(fabric: &NetNs) -> anyhow::Result<Self> {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = fabric
            .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(all)))?
            .context("cannot open a packet socket")?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket })
    }

    /// Returns the traffic since the start or the previous call.
    pub(crate) fn read(&mut self) -> anyhow::Result<Traffic> {
        let mut traffic = Traffic::default();
        let mut frame = vec![0; 1 << 16];
        loop {
            match (&self.socket).read(&mut frame) {
                Ok(length) => traffic.add(&frame[..length]),
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(traffic),
                    _ => return Err(e.into()),
                },
            }
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} TCP packets, {} payload bytes, {} TLS records, {} packets outside a tunnel",
            self.packets, self.bytes, self.tls_records, self.plain_packets
        )
    }
}

impl Traffic {
    /// Whether the payloads contain a text.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let mut windows = self.payload.windows(text.len());
        windows.any(|w| w == text.as_bytes())
    }

    /// Fails if there was data outside tunnels.
    pub(crate) fn expect_tunnels_only(&self) -> anyhow::Result<()> {
        let plain = self.plain_packets;
        ensure!(
            plain == 0,
            "{plain} packets with data were outside a tunnel"
        );
        Ok(())
    }

    fn add(&mut self, frame: &[u8]) {
        let Some((ports, payload)) = parse_tcp(frame) else {
            return;
        };
        self.packets += 1;
        self.bytes += payload.len();
        if payload.is_empty() {
            return;
        }
        self.payload.extend_from_slice(payload);
        if matches!(payload, [20..=23, 3, 1..=3, ..]) {
            self.tls_records += 1;
        }
        if !ports.contains(&istio::port::HBONE) {
            self.plain_packets += 1;
        }
    }
}

/// Parses ports and payload of an Ethernet frame with TCP over IPv4 or IPv6.
fn parse_tcp(frame: &[u8]) -> Option<([u16; 2], &[u8])> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    let segment = match ethernet[12..] {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            (*packet.get(9)? == 6).then(|| packet.get(header..total.min(packet.len())))??
        }
        [0x86, 0xdd] => (*packet.get(6)? == 6).then(|| packet.get(40..))??,
        _ => return None,
    };
    let port = |at: usize| {
        let bytes = segment.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(([port(0)?, port(2)?], segment.get(header..)?))
}
