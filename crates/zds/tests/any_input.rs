//! Arbitrary packets cause no panic: the session stays usable or returns an error.

use std::time::Instant;

use proptest::prelude::*;
use zds::agent::Urgency;
use zds::{Request, WorkloadInfo, agent, proxy};

proptest! {
    #[test]
    fn any_packets_to_a_proxy_cause_no_panic(
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..64), 0usize..3),
            0..8,
        ),
    ) {
        let mut session = proxy::Session::<u32>::new();
        for (packet, namespaces) in packets {
            let _ = session.handle(&packet, vec![7; namespaces]);
        }
    }

    #[test]
    fn any_packets_to_an_agent_cause_no_panic(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..8),
        hello_received in any::<bool>(),
    ) {
        let now = Instant::now();
        let mut session = agent::Session::new(1, now);
        if hello_received && let Ok(hello) = proxy::hello() {
            let _ = session.handle(&hello);
        }
        let request = Request::Add { uid: "a".to_owned(), info: WorkloadInfo::default() };
        session.enqueue(request, Urgency::Normal);
        for packet in packets {
            let _ = session.poll_transmit(now);
            if session.handle(&packet).is_err() {
                break;
            }
        }
    }

    /// For any sequence of requests, a proxy that answers completes the snapshot and serves the
    /// expected pods.
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
            // The second mention of a pod removes it.
            if wanted.remove(&uid) {
                agent.enqueue(Request::Del { uid }, Urgency::Normal);
            } else {
                wanted.insert(uid.clone());
                agent.enqueue(Request::Add { uid, info: WorkloadInfo::default() }, Urgency::Normal);
            }
        }
        agent.enqueue(Request::SnapshotSent, Urgency::Normal);
        while let Some(packet) = agent.poll_transmit(now) {
            let Ok((bytes, request)) = packet else { panic!("packet too large") };
            let of_pod = request.uid().and_then(|uid| uid.bytes().next()).unwrap_or_default();
            let is_add = matches!(request, Request::Add { .. });
            let namespaces = if is_add { vec![u32::from(of_pod)] } else { vec![] };
            match proxy.handle(&bytes, namespaces) {
                Ok(proxy::Command::Start { uid, .. }) => { served.insert(uid); }
                Ok(proxy::Command::Stop { uid }) => { served.remove(&uid); }
                Ok(proxy::Command::Reject(why)) => panic!("{why}"),
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
