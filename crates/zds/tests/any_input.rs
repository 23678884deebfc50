//! Whatever the other end sends: no panic, and the session stays usable or says that it is not.

use std::time::Instant;

use proptest::prelude::*;
use zds::agent::Urgency;
use zds::{Request, WorkloadInfo, agent, proxy};

proptest! {
    #[test]
    fn any_packets_to_a_proxy(packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..64), 0usize..3), 0..8)) {
        let mut session = proxy::Session::<u32>::new();
        for (packet, namespaces) in packets {
            let _ = session.handle(&packet, vec![7; namespaces]);
        }
    }

    #[test]
    fn any_packets_to_an_agent(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..8), greeted in any::<bool>()) {
        let now = Instant::now();
        let mut session = agent::Session::new(1, now);
        if greeted && let Ok(hello) = proxy::hello() {
            let _ = session.handle(&hello);
        }
        session.ask(Request::Add { uid: "a".to_owned(), info: WorkloadInfo::default() }, Urgency::InTurn);
        for packet in packets {
            let _ = session.poll_transmit(now);
            if session.handle(&packet).is_err() {
                break;
            }
        }
    }

    /// Whatever is asked in whatever order, a proxy that answers gets to the end of the snapshot and knows what it should.
    #[test]
    fn both_ends_agree(uids in prop::collection::vec("[a-e]", 0..12), window in 1usize..4) {
        let now = Instant::now();
        let mut agent = agent::Session::new(window, now);
        let mut served = std::collections::BTreeSet::new();
        let mut proxy = proxy::Session::<u32>::new();
        let hello = proxy::hello();
        prop_assert!(hello.is_ok_and(|h| agent.handle(&h).is_ok()));
        let mut wanted = std::collections::BTreeSet::new();
        for uid in uids {
            // The second mention of a pod takes it away again.
            if wanted.remove(&uid) {
                agent.ask(Request::Del { uid }, Urgency::InTurn);
            } else {
                wanted.insert(uid.clone());
                agent.ask(Request::Add { uid, info: WorkloadInfo::default() }, Urgency::InTurn);
            }
        }
        agent.ask(Request::SnapshotSent, Urgency::InTurn);
        while let Some(packet) = agent.poll_transmit(now) {
            let Ok((bytes, request)) = packet else { panic!("too long") };
            let namespaces = if matches!(request, Request::Add { .. }) { vec![1] } else { vec![] };
            match proxy.handle(&bytes, namespaces) {
                Ok(proxy::Command::Start { uid, .. }) => { served.insert(uid); }
                Ok(proxy::Command::Stop { uid }) => { served.remove(&uid); }
                Ok(proxy::Command::Refuse(why)) => panic!("{why}"),
                Ok(_) => {}
                Err(e) => panic!("{e}"),
            }
            let answer = proxy::answer(Ok(()));
            prop_assert!(answer.is_ok_and(|a| agent.handle(&a).is_ok()));
        }
        prop_assert!(agent.synced());
        prop_assert_eq!(served, wanted);
    }
}
