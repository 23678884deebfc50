//! How many bytes of a stream fill the packets of its tunnel.
//!
//! The kernel passes up to 64 KiB on as one packet, which the network card or the peer's kernel
//! splits into segments. A write that is a little longer becomes two such packets, the second of
//! them tiny, and each costs the same work.

use socket2::SockRef;
use tokio::net::TcpStream;

/// The most that the kernel puts into one packet, in bytes: `gso_max_size`, less what it reserves
/// for headers (`MAX_TCP_HEADER`).
const LARGEST_PACKET: usize = 65_536 - 321;
/// The maximum segment size of Ethernet with timestamps.
const ETHERNET_SEGMENT: usize = 1448;
/// Plaintext of a TLS record, in bytes.
const RECORD: usize = 1 << 14;
/// What a TLS record adds, in bytes: 22 with TLS 1.3, and at most this with TLS 1.2.
const RECORD_OVERHEAD: usize = 29;
/// Length of an HTTP/2 frame's header.
const FRAME_HEADER: usize = 9;

/// The number of bytes that fill a packet of whole segments on this connection, as one frame.
pub(crate) fn payload_on(tcp: &TcpStream) -> usize {
    let segment = match SockRef::from(tcp).tcp_mss() {
        Ok(segment) if segment > 0 => segment as usize,
        _ => ETHERNET_SEGMENT, // the connection is about to fail
    };
    payload_of_segments(segment)
}

fn payload_of_segments(segment: usize) -> usize {
    payload_within(match LARGEST_PACKET / segment {
        0 => LARGEST_PACKET,
        segments => segments * segment,
    })
}

/// The number of bytes that take this many with the headers of a frame and of its records.
pub(crate) fn payload_within(wire: usize) -> usize {
    let records = wire.div_ceil(RECORD + RECORD_OVERHEAD);
    wire.saturating_sub(records * RECORD_OVERHEAD + FRAME_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a frame in TLS 1.3 and 1.2 records.
    fn on_the_wire(payload: usize) -> [usize; 2] {
        let frame = payload + FRAME_HEADER;
        [22, 29].map(|overhead| frame + frame.div_ceil(RECORD) * overhead)
    }

    #[test]
    fn a_frame_fills_all_segments_of_a_packet_but_does_not_exceed_it() {
        for segment in [
            536, 1220, 1398, 1428, 1448, 1456, 4034, 8949, 32_741, 65_483,
        ] {
            let payload = payload_of_segments(segment);
            for wire in on_the_wire(payload) {
                assert!(wire <= LARGEST_PACKET, "{segment}: {wire}");
                if segment <= LARGEST_PACKET {
                    let last = wire % segment;
                    assert!(last == 0 || segment - last <= 28, "{segment}: {wire}");
                    assert!(wire + segment > LARGEST_PACKET, "{segment}: {wire}");
                }
            }
        }
        assert_eq!(payload_of_segments(1448), 45 * 1448 - 4 * 29 - 9);
    }

    #[test]
    fn a_stream_within_a_stream_fills_its_frames() {
        let outer = payload_of_segments(1448);
        for wire in on_the_wire(payload_within(outer)) {
            assert!(wire <= outer && outer - wire <= 28, "{wire}");
        }
    }
}
