//! Packets between agent and proxy, to both ends and through the codec. A byte before each packet says how long it is.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use zds::agent::Urgency;
use zds::message::{WorkloadRequest, WorkloadResponse, ZdsHello};
use zds::{Request, WorkloadInfo, agent, codec, proxy};

fn packets(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first()?;
        let (packet, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or((rest, &[]));
        bytes = rest;
        Some(packet)
    })
}

fn both_ways<M: prost::Message + Default + PartialEq>(packet: &[u8]) {
    if let Ok(message) = codec::decode::<M>(packet, codec::MAX_RESPONSE) {
        let written = codec::encode(&message, usize::MAX).expect("what was read can be written");
        assert!(codec::decode::<M>(&written, usize::MAX).expect("what was written can be read") == message);
    }
}

fuzz_target!(|bytes: &[u8]| {
    for packet in packets(bytes) {
        both_ways::<WorkloadRequest>(packet);
        both_ways::<WorkloadResponse>(packet);
        both_ways::<ZdsHello>(packet);
    }
    let mut session = proxy::Session::<u32>::new();
    for packet in packets(bytes) {
        let _ = session.handle(packet, vec![7; packet.len() % 3]);
    }
    for greeted in [false, true] {
        let now = Instant::now();
        let mut session = agent::Session::new(1, now);
        if greeted {
            let hello = proxy::hello().expect("a hello is short");
            session.handle(&hello).expect("a hello is understood");
        }
        session.ask(Request::Add { uid: "a".to_owned(), info: WorkloadInfo::default() }, Urgency::InTurn);
        session.ask(Request::SnapshotSent, Urgency::InTurn);
        for packet in packets(bytes) {
            let _ = session.poll_transmit(now);
            if session.handle(packet).is_err() {
                break;
            }
        }
    }
});
