//! Two ends run a random script. What they do must depend neither on how the bytes are split, nor
//! on whether their state is frozen and thawed in between.

use std::collections::HashSet;

use proptest::prelude::*;

use super::{SUITES, client, from_client, from_server, receive_into, server, take};
use crate::open::{Content, Opener};
use crate::{Direction, RecordLayer, RecordState, Suite};

#[derive(Debug, Clone)]
enum Step {
    /// One end seals data.
    Seal { client: bool, length: usize },
    /// One end updates its keys.
    Refresh { client: bool },
    /// One end sends `close_notify`.
    Close { client: bool },
    /// So many bytes of what one end has sent reach the other.
    Deliver { client: bool, length: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let length = || prop_oneof![9 => 0_usize..300, 1 => 0_usize..40_000];
    prop_oneof![
        6 => (any::<bool>(), length()).prop_map(|(client, length)| Step::Seal { client, length }),
        3 => any::<bool>().prop_map(|client| Step::Refresh { client }),
        9 => (any::<bool>(), length())
            .prop_map(|(client, length)| Step::Deliver { client, length }),
        1 => any::<bool>().prop_map(|client| Step::Close { client }),
    ]
}

/// One end, with everything that it has sent and received.
struct End {
    layer: Option<RecordLayer>,
    sent: Vec<u8>,
    /// Number of bytes of `sent` that have reached the other end.
    delivered: usize,
    data: Vec<u8>,
    results: Vec<String>,
}

impl End {
    fn new(layer: RecordLayer) -> Self {
        Self {
            layer: Some(layer),
            sent: Vec::new(),
            delivered: 0,
            data: Vec::new(),
            results: Vec::new(),
        }
    }

    fn layer(&mut self) -> &mut RecordLayer {
        self.layer.as_mut().unwrap()
    }

    /// Freezes and thaws the state, by way of its serialised form.
    fn freeze(&mut self) {
        let state = self.layer.take().unwrap().freeze();
        let bytes = serde_json::to_vec(&state).unwrap();
        let state: RecordState = serde_json::from_slice(&bytes).unwrap();
        self.layer = Some(state.thaw().unwrap());
    }

    fn receive(&mut self, bytes: &[u8]) {
        let layer = self.layer.as_mut().unwrap();
        let result = receive_into(layer, bytes, &mut self.data);
        self.results.push(format!("{result:?}"));
    }

    fn state(&mut self) -> String {
        serde_json::to_string(&self.layer.take().unwrap().freeze()).unwrap()
    }
}

/// Returns the server and the client.
fn run(script: &[Step], suite: Suite, freezing: bool) -> [End; 2] {
    let mut ends = [End::new(server(suite)), End::new(client(suite))];
    let mut number = 0_u8;
    for step in script {
        if freezing {
            ends.iter_mut().for_each(End::freeze);
        }
        match *step {
            Step::Seal { client, length } => {
                number = number.wrapping_add(1);
                let end = &mut ends[usize::from(client)];
                let result = end.layer().seal(&vec![number; length]);
                end.results.push(format!("{result:?}"));
            }
            Step::Refresh { client } => {
                let result = ends[usize::from(client)].layer().refresh_traffic_keys();
                ends[usize::from(client)]
                    .results
                    .push(format!("{result:?}"));
            }
            Step::Close { client } => {
                let result = ends[usize::from(client)].layer().close();
                ends[usize::from(client)]
                    .results
                    .push(format!("{result:?}"));
            }
            Step::Deliver { client, length } => {
                let [server, other] = &mut ends;
                let (from, to) = if client {
                    (other, server)
                } else {
                    (server, other)
                };
                // Some of it stays unsent, so that it is part of what is frozen.
                let outgoing = from.layer().outgoing();
                let part = outgoing.unsent().len().div_ceil(2);
                let bytes = outgoing.unsent()[..part].to_vec();
                outgoing.sent(part);
                from.sent.extend(bytes);
                let arrived = from.sent.len().min(from.delivered + length);
                to.receive(&from.sent[from.delivered..arrived]);
                from.delivered = arrived;
            }
        }
    }
    for end in &mut ends {
        let rest = take(end.layer().outgoing());
        end.sent.extend(rest);
    }
    ends
}

/// Opens everything that one end has sent, and returns the nonces: generation of the keys, and
/// sequence number.
fn nonces(suite: Suite, direction: Direction, mut sent: &[u8]) -> Vec<(u32, u64)> {
    let mut opener = Opener::new(suite, direction);
    let (mut generation, mut sequence, mut nonces) = (0, 0, Vec::new());
    while let Some(length) = crate::deframe::record_length(sent).unwrap() {
        let mut record = sent[..length].to_vec();
        let (content, range) = opener.open(&mut record).unwrap();
        nonces.push((generation, sequence));
        sequence += 1;
        if content == Content::Handshake && record[range][0] == 24 {
            opener.update();
            (generation, sequence) = (generation + 1, 0);
        }
        sent = &sent[length..];
    }
    assert!(sent.is_empty());
    nonces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn freezing_at_every_event_equals_not_freezing(
        script in prop::collection::vec(step(), 0..40),
        suite in prop::sample::select(&SUITES[..]),
    ) {
        let (mut ends, mut others) = (run(&script, suite, false), run(&script, suite, true));
        for (end, other) in ends.iter_mut().zip(&mut others) {
            prop_assert_eq!(&end.sent, &other.sent);
            prop_assert_eq!(&end.data, &other.data);
            prop_assert_eq!(&end.results, &other.results);
            prop_assert_eq!(end.state(), other.state());
        }
    }

    #[test]
    fn no_nonce_is_used_twice_and_none_is_left_out(
        script in prop::collection::vec(step(), 0..40),
        suite in prop::sample::select(&SUITES[..]),
    ) {
        let [server, client] = run(&script, suite, true);
        for (direction, sent) in [
            (from_client(suite, 0), &client.sent),
            (from_server(suite, 0), &server.sent),
        ] {
            let nonces = nonces(suite, direction, sent);
            let unique: HashSet<_> = nonces.iter().collect();
            prop_assert_eq!(unique.len(), nonces.len());
            prop_assert_eq!(nonces.len(), super::records(sent).len());
        }
    }

    #[test]
    fn what_is_received_does_not_depend_on_how_the_bytes_are_split(
        script in prop::collection::vec(step(), 0..40),
        sizes in prop::collection::vec(prop_oneof![1_usize..8, 1_usize..20_000], 1..20),
        damage in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let suite = SUITES[0];
        let [_, client] = run(&script, suite, false);
        let mut sent = client.sent;
        if let Some(damage) = damage.filter(|_| !sent.is_empty()) {
            let at = damage.index(sent.len());
            sent[at] ^= 0x80;
        }
        let (mut whole, mut split) = (End::new(server(suite)), End::new(server(suite)));
        // As far as an error, whatever precedes it is received.
        let mut rest = &sent[..];
        while let Ok(Some(length)) = crate::deframe::record_length(rest) {
            whole.receive(&rest[..length]);
            rest = &rest[length..];
        }
        whole.receive(rest);
        let mut rest = &sent[..];
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, after) = rest.split_at(rest.len().min(*size));
            for bytes in part.chunks(1.max(part.len() / 2)) {
                split.receive(bytes);
            }
            rest = after;
        }
        split.receive(&[]);
        prop_assert_eq!(&whole.data, &split.data);
        prop_assert_eq!(whole.results.last(), split.results.last());
        prop_assert_eq!(whole.state(), split.state());
    }
}
