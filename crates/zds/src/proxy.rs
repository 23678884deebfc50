//! The proxy's end of the protocol, without I/O.
//!
//! The caller passes each received packet to [`Session::handle`], does what the returned [`Command`] says, and sends the
//! packet that [`answer`] makes of the outcome before it reads the next one. A request that makes no sense is answered
//! with an error and changes nothing; only bytes that are no message end the connection. Pods go on being served when
//! a connection ends: the next one begins with [`Session::reconnected`], and what its snapshot does not name is given up.

use std::collections::HashMap;

use crate::codec::{self, CodecError, MAX_REQUEST, MAX_RESPONSE};
use crate::message::{Ack, Payload, Response, Version, WorkloadInfo, WorkloadRequest, WorkloadResponse, ZdsHello};

/// What the proxy knows of its pods, across connections. `N` tells one network namespace from another.
#[derive(Debug)]
pub struct Session<N> {
    pods: HashMap<String, Pod<N>>,
    snapshot_complete: bool,
}

#[derive(Debug)]
struct Pod<N> {
    netns: N,
    /// Whether this connection has named it.
    named: bool,
}

/// What to do about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<N> {
    /// Serve this pod in this namespace; a pod of the same uid in another namespace is given up first.
    Start {
        /// The pod's uid.
        uid: String,
        /// Who it is.
        info: WorkloadInfo,
        /// Its network namespace.
        netns: N,
    },
    /// The pod is served already, in this namespace, or is to be served on.
    GoOn,
    /// Stop serving this pod.
    Stop {
        /// The pod's uid.
        uid: String,
    },
    /// The snapshot is complete: stop serving these, and be ready.
    SnapshotComplete {
        /// Uids of pods that the agent does not know any more.
        gone: Vec<String>,
    },
    /// Do nothing; answer with this error.
    Refuse(String),
}

/// The first packet of a connection.
///
/// # Errors
/// Never in practice; the message has a few bytes.
pub fn hello() -> Result<Vec<u8>, CodecError> {
    codec::encode(&ZdsHello { version: Version::V1.into() }, MAX_REQUEST)
}

/// The packet that answers a request: done, or not done and why.
///
/// # Errors
/// Never in practice; a long text is cut.
pub fn answer(outcome: Result<(), &str>) -> Result<Vec<u8>, CodecError> {
    let text = outcome.err().unwrap_or_default();
    let end = (0..=text.len().min(1000)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let ack = Ack { error: text[..end].to_owned() };
    codec::encode(&WorkloadResponse { payload: Some(Response::Ack(ack)) }, MAX_RESPONSE)
}

impl<N: Clone + PartialEq> Session<N> {
    /// A proxy that serves nobody yet.
    pub fn new() -> Self {
        Self { pods: HashMap::new(), snapshot_complete: false }
    }

    /// A new connection has begun; the agent will name every pod again.
    pub fn reconnected(&mut self) {
        self.snapshot_complete = false;
        self.pods.values_mut().for_each(|pod| pod.named = false);
    }

    /// Handles one packet, with the namespaces that came with it.
    ///
    /// # Errors
    /// [`CodecError`]: the connection is of no use any more.
    pub fn handle(&mut self, packet: &[u8], mut namespaces: Vec<N>) -> Result<Command<N>, CodecError> {
        let request: WorkloadRequest = codec::decode(packet, MAX_REQUEST)?;
        let refuse = |why: &str| Ok(Command::Refuse(why.to_owned()));
        if !matches!(request.payload, Some(Payload::Add(_))) && !namespaces.is_empty() {
            return refuse("a file descriptor came with a request that takes none");
        }
        match request.payload {
            Some(Payload::Add(add)) => {
                let Some(info) = add.workload_info else { return refuse("Add without workload_info") };
                match (namespaces.pop(), namespaces.is_empty()) {
                    _ if add.uid.is_empty() => refuse("Add without uid"),
                    (Some(netns), true) => Ok(self.add(add.uid, info, netns)),
                    (None, _) => refuse("Add without a network namespace"),
                    (Some(_), false) => refuse("Add with more than one file descriptor"),
                }
            }
            Some(Payload::Keep(keep)) => {
                if self.snapshot_complete {
                    return refuse("Keep after the snapshot");
                }
                // A pod that we do not have cannot be kept; the agent has no namespace to give us either.
                if let Some(pod) = self.pods.get_mut(&keep.uid) {
                    pod.named = true;
                }
                Ok(Command::GoOn)
            }
            Some(Payload::Del(del)) => {
                self.pods.remove(&del.uid);
                Ok(Command::Stop { uid: del.uid })
            }
            Some(Payload::SnapshotSent(_)) => {
                if self.snapshot_complete {
                    return refuse("a second snapshot");
                }
                self.snapshot_complete = true;
                let mut gone: Vec<String> =
                    self.pods.iter().filter(|(_, p)| !p.named).map(|(uid, _)| uid.clone()).collect();
                gone.sort();
                self.pods.retain(|_, p| p.named);
                Ok(Command::SnapshotComplete { gone })
            }
            None => refuse("a request of a kind that this proxy does not know"),
        }
    }

    /// The pod could not be served after all: the next Add of it is not taken for a repetition.
    pub fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// Whether the agent has named every pod on this connection.
    pub fn snapshot_complete(&self) -> bool {
        self.snapshot_complete
    }

    fn add(&mut self, uid: String, info: WorkloadInfo, netns: N) -> Command<N> {
        match self.pods.insert(uid.clone(), Pod { netns: netns.clone(), named: true }) {
            Some(old) if old.netns == netns => Command::GoOn,
            _ => Command::Start { uid, info, netns },
        }
    }
}

impl<N: Clone + PartialEq> Default for Session<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{AddWorkload, DelWorkload, KeepWorkload, SnapshotSent};

    fn packet(payload: Payload) -> Vec<u8> {
        codec::encode(&WorkloadRequest { payload: Some(payload) }, MAX_REQUEST).unwrap()
    }

    fn add(uid: &str) -> Vec<u8> {
        packet(Payload::Add(AddWorkload { uid: uid.into(), workload_info: Some(WorkloadInfo::default()) }))
    }

    fn started(uid: &str, netns: u32) -> Command<u32> {
        Command::Start { uid: uid.into(), info: WorkloadInfo::default(), netns }
    }

    #[test]
    fn a_repeated_add_changes_nothing_and_another_namespace_starts_anew() {
        let mut s = Session::new();
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(started("a", 1)));
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(Command::GoOn));
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
        s.forget("a");
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
        assert_eq!(
            s.handle(&packet(Payload::Del(DelWorkload { uid: "a".into() })), vec![]),
            Ok(Command::Stop { uid: "a".into() })
        );
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
    }

    #[test]
    fn a_snapshot_gives_up_what_it_does_not_name() {
        let mut s = Session::new();
        for (uid, netns) in [("a", 1), ("b", 2), ("c", 3)] {
            s.handle(&add(uid), vec![netns]).unwrap();
        }
        let end = packet(Payload::SnapshotSent(SnapshotSent {}));
        assert_eq!(s.handle(&end, vec![]), Ok(Command::SnapshotComplete { gone: vec![] }));
        s.reconnected();
        assert!(!s.snapshot_complete());
        s.handle(&add("a"), vec![1]).unwrap();
        s.handle(&packet(Payload::Keep(KeepWorkload { uid: "b".into() })), vec![]).unwrap();
        assert_eq!(s.handle(&end, vec![]), Ok(Command::SnapshotComplete { gone: vec!["c".into()] }));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let mut s = Session::new();
        s.handle(&packet(Payload::SnapshotSent(SnapshotSent {})), vec![]).unwrap();
        let nobody = packet(Payload::Add(AddWorkload { uid: "a".into(), workload_info: None }));
        let refused = [
            (add("a"), vec![]),
            (add("a"), vec![1, 2]),
            (add(""), vec![1]),
            (nobody, vec![1]),
            (packet(Payload::Del(DelWorkload { uid: "a".into() })), vec![1]),
            (packet(Payload::Keep(KeepWorkload { uid: "a".into() })), vec![]),
            (packet(Payload::SnapshotSent(SnapshotSent {})), vec![]),
            (Vec::new(), vec![]),
        ];
        for (packet, namespaces) in refused {
            assert!(matches!(s.handle(&packet, namespaces), Ok(Command::Refuse(_))), "{packet:?}");
        }
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(started("a", 1)));
        assert!(s.handle(&[0xff; 8], vec![]).is_err());
        assert!(matches!(s.handle(&vec![0; 2000], vec![]), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let bytes = answer(Err(&"ä".repeat(5000))).unwrap();
        let response: WorkloadResponse = codec::decode(&bytes, MAX_RESPONSE).unwrap();
        let Some(Response::Ack(ack)) = response.payload else { panic!("no ack") };
        assert_eq!(ack.error.len(), 1000);
    }
}
