//! Packets between agent and proxy, for both ends and for the codec. A length byte precedes each
//! packet.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use zds::agent::Urgency;
use zds::message::{WorkloadRequest, WorkloadResponse, ZdsHello};
use zds::{Request, WorkloadInfo, agent, codec, proxy};

fn packets(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first()?;
        let (packet, rest) = rest
            .split_at_checked(usize::from(*length))
            .unwrap_or((rest, &[]));
        bytes = rest;
        Some(packet)
    })
}

fn round_trip<M: prost::Message + Default + PartialEq>(packet: &[u8]) {
    if let Ok(message) = codec::decode::<M>(packet, codec::MAX_RESPONSE) {
        let written =
            codec::encode(&message, usize::MAX).expect("a decoded message can be encoded");
        assert!(
            codec::decode::<M>(&written, usize::MAX).expect("an encoded message can be decoded")
                == message
        );
    }
}

fuzz_target!(|bytes: &[u8]| {
    for packet in packets(bytes) {
        round_trip::<WorkloadRequest>(packet);
        round_trip::<WorkloadResponse>(packet);
        round_trip::<ZdsHello>(packet);
    }
    let mut session = proxy::Session::<u32>::new();
    for packet in packets(bytes) {
        let _ = session.handle(packet, vec![7; packet.len() % 3]);
    }
    for send_hello in [false, true] {
        let now = Instant::now();
        let mut session = agent::Session::new(1, now);
        if send_hello {
            let hello = proxy::hello().expect("a hello is short");
            session.handle(&hello).expect("a hello is valid");
        }
        session.enqueue(
            Request::Add {
                uid: "a".to_owned(),
                info: WorkloadInfo::default(),
            },
            Urgency::Normal,
        );
        session.enqueue(Request::SnapshotSent, Urgency::Normal);
        for packet in packets(bytes) {
            let _ = session.poll_transmit(now);
            if session.handle(packet).is_err() {
                break;
            }
        }
    }
});
