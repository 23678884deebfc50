//! What really crosses a wire, by the kernel's packet sockets.

use std::io::Read;
use std::time::{Duration, Instant};

use netns::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// Sees every frame that a namespace's interfaces send and receive.
#[derive(Debug)]
pub struct Sniffer(Socket);

impl Sniffer {
    /// Begins to watch.
    pub fn new(netns: &NetNs) -> Self {
        const ETH_P_ALL: u16 = 3; // linux/if_ether.h
        let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = netns.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(all))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Self(socket)
    }

    /// Whether a frame with this text is seen within a time.
    pub fn sees(&self, text: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut frame = vec![0; 1 << 16];
        while Instant::now() < deadline {
            if let Ok(length) = (&self.0).read(&mut frame)
                && frame[..length].windows(text.len()).any(|w| w == text.as_bytes())
            {
                return true;
            }
        }
        false
    }
}
