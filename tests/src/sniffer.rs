//! Captures the frames on a wire with packet sockets.

use std::io::Read;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// Captures every frame that a namespace's interfaces send and receive.
#[derive(Debug)]
pub struct Sniffer(Socket);

impl Sniffer {
    /// Starts to capture.
    pub fn new(netns: &NetNs) -> Self {
        const ETH_P_ALL: u16 = 3; // linux/if_ether.h
        let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = netns
            .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(all)))
            .unwrap()
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        Self(socket)
    }

    /// The packet socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.0
    }

    /// Whether a frame that contains this text is captured in time.
    pub fn sees(&self, text: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut frame = vec![0; 1 << 16];
        while Instant::now() < deadline {
            if let Ok(length) = (&self.0).read(&mut frame)
                && frame[..length]
                    .windows(text.len())
                    .any(|w| w == text.as_bytes())
            {
                return true;
            }
        }
        false
    }
}

/// Counts of TCP frames on one interface.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// All frames.
    pub frames: usize,
    /// Bytes of all frames.
    pub bytes: usize,
    /// Segments with data from or to the tunnel port.
    pub tunnel: usize,
    /// Those of them that start with a TLS record.
    pub tls: usize,
    /// Frames that contain the plaintext.
    pub readable: usize,
}

/// Counts frames on an interface in the background.
#[derive(Debug)]
pub struct Counter {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Counter {
    /// Starts to count tunnel segments, and frames that contain this text.
    pub fn start(netns: &NetNs, interface: &str, text: &'static str) -> Self {
        let sniffer = Sniffer::new(netns);
        netns
            .run(|| sniffer.0.bind_device(Some(interface.as_bytes())))
            .unwrap()
            .unwrap();
        Self::count(sniffer, text)
    }

    /// Starts to count on all interfaces of a namespace, `lo` included.
    pub fn start_on_all(netns: &NetNs, text: &'static str) -> Self {
        Self::count(Sniffer::new(netns), text)
    }

    fn count(sniffer: Sniffer, text: &'static str) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        Self {
            ended,
            thread: std::thread::spawn(move || sniffer.count(text, &end)),
        }
    }

    /// Stops, and returns the counts.
    pub fn stop(self) -> Tally {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Sniffer {
    fn count(&self, text: &str, ended: &AtomicBool) -> Tally {
        let (mut tally, mut frame) = (Tally::default(), vec![0; 1 << 16]);
        loop {
            match (&self.0).read(&mut frame) {
                Ok(length) => tally.add(&frame[..length], text),
                // No frame within the read timeout.
                Err(_) if ended.load(Ordering::Relaxed) => return tally,
                Err(_) => {}
            }
        }
    }
}

impl Tally {
    /// Counts a frame.
    pub(crate) fn add(&mut self, frame: &[u8], text: &str) {
        self.frames += 1;
        self.bytes += frame.len();
        self.readable += usize::from(frame.windows(text.len()).any(|w| w == text.as_bytes()));
        let Some(segment) = tcp(frame).filter(|s| s.len() >= 20) else {
            return;
        };
        let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let data = segment
            .get(usize::from(segment[12] >> 4) * 4..)
            .unwrap_or_default();
        if (port(0) == istio::port::HBONE || port(2) == istio::port::HBONE) && !data.is_empty() {
            self.tunnel += 1;
            // Other segments continue a record.
            self.tls += usize::from(matches!(data, [20..=23, 3, ..]));
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.tunnel += other.tunnel;
        self.tls += other.tls;
        self.readable += other.readable;
    }
}

/// The TCP segment of an Ethernet frame, without the padding of short frames.
fn tcp(frame: &[u8]) -> Option<&[u8]> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let (header, length, protocol) = match packet.first()? >> 4 {
        4 => (
            usize::from(packet[0] & 15) * 4,
            usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            *packet.get(9)?,
        ),
        6 => (
            40,
            40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?])),
            packet[6],
        ),
        _ => return None,
    };
    (protocol == TCP).then(|| packet.get(header..length.min(packet.len())))?
}
