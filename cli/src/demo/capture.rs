//! The wire between the nodes, watched by the kernel's packet sockets: nothing here depends on what Underpass says.

use std::io::{self, Read};
use std::time::Duration;

use anyhow::Context;
use netns::NetNs;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// Everything that crosses the fabric from now on.
pub(crate) struct Capture {
    socket: Socket,
}

/// What has crossed.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
    /// TCP payloads, one after another.
    pub(crate) payload: Vec<u8>,
    /// How many of them begin with a TLS record: handshake, alert or application data of TLS 1.x.
    pub(crate) tls_records: usize,
    /// TCP payloads from or to ports that are not 15008.
    pub(crate) plain_packets: usize,
}

impl Capture {
    /// Begins; the socket holds what it has seen until it is read.
    pub(crate) fn begin(fabric: &NetNs) -> anyhow::Result<Self> {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = fabric.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(all)))?.context("packet socket")?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket })
    }

    /// What has crossed since the beginning, or since the last time.
    pub(crate) fn take(&mut self) -> anyhow::Result<Traffic> {
        let mut traffic = Traffic::default();
        let mut frame = vec![0; 1 << 16];
        loop {
            match (&self.socket).read(&mut frame) {
                Ok(length) => traffic.add(&frame[..length]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(traffic);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Traffic {
    /// Whether these bytes were on the wire.
    pub(crate) fn holds(&self, text: &str) -> bool {
        self.payload.windows(text.len()).any(|w| w == text.as_bytes())
    }

    fn add(&mut self, frame: &[u8]) {
        let Some((ports, payload)) = tcp_of(frame) else { return };
        self.packets += 1;
        self.bytes += payload.len();
        if payload.is_empty() {
            return;
        }
        self.payload.extend_from_slice(payload);
        if matches!(payload, [20..=23, 3, 1..=3, ..]) {
            self.tls_records += 1;
        }
        if !ports.contains(&15008) {
            self.plain_packets += 1;
        }
    }
}

/// Ports and payload of an Ethernet frame that holds TCP over IPv4 or IPv6.
fn tcp_of(frame: &[u8]) -> Option<([u16; 2], &[u8])> {
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
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(([port(0)?, port(2)?], segment.get(header..)?))
}
