//! The proxy's end of the protocol, without I/O.
//!
//! The caller passes each received packet to [`Session::handle`], executes the returned
//! [`Command`], and sends the packet from [`answer`] before it reads the next one. An invalid
//! request is answered with an error and changes nothing; only a malformed packet ends the
//! connection. Pods stay served when a connection ends. The caller starts the next one with
//! [`Session::reconnected`]; pods missing from its snapshot are then stopped.

use std::collections::HashMap;

use crate::codec::{self, CodecError, MAX_REQUEST, MAX_RESPONSE};
use crate::message::{
    Ack, Payload, Response, Version, WorkloadInfo, WorkloadRequest, WorkloadResponse, ZdsHello,
};

/// The proxy's pods, across connections. `N` identifies a network namespace.
#[derive(Debug)]
pub struct Session<N> {
    pods: HashMap<String, ServedPod<N>>,
    /// The pods that the last [`Command::Start`] replaces.
    replaced: Vec<(String, ServedPod<N>)>,
    snapshot_complete: bool,
}

#[derive(Debug)]
struct ServedPod<N> {
    netns: N,
    /// Whether the agent has named the pod on this connection.
    confirmed: bool,
}

/// The action for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<N> {
    /// Serve this pod in this namespace, in place of a pod with the same uid in another namespace.
    Start {
        /// The pod's uid.
        uid: String,
        /// Name and identity of the pod.
        info: WorkloadInfo,
        /// Its network namespace.
        netns: N,
        /// The pod that had this namespace until now, to be stopped once this one is served.
        replaces: Option<String>,
    },
    /// Nothing changes: the pod is already served in this namespace, or is to be kept.
    Continue,
    /// Stop serving this pod.
    Stop {
        /// The pod's uid.
        uid: String,
    },
    /// The snapshot is complete: stop serving the removed pods, and become ready.
    SnapshotComplete {
        /// Uids of pods that the agent no longer knows.
        removed: Vec<String>,
    },
    /// Do nothing, and answer with this error.
    Reject(String),
}

/// Encodes the first packet of a connection.
///
/// # Errors
/// Never in practice; the message has only a few bytes.
pub fn hello() -> Result<Vec<u8>, CodecError> {
    codec::encode(
        &ZdsHello {
            version: Version::V1.into(),
        },
        MAX_REQUEST,
    )
}

/// Encodes the answer to a request: success or an error.
///
/// # Errors
/// Never in practice; a long error text is truncated.
pub fn answer(outcome: Result<(), &str>) -> Result<Vec<u8>, CodecError> {
    let text = outcome.err().unwrap_or_default();
    let end = (0..=text.len().min(1000))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    let ack = Ack {
        error: text[..end].to_owned(),
    };
    codec::encode(
        &WorkloadResponse {
            payload: Some(Response::Ack(ack)),
        },
        MAX_RESPONSE,
    )
}

impl<N: Clone + PartialEq> Session<N> {
    /// Creates a session without pods.
    pub fn new() -> Self {
        Self {
            pods: HashMap::new(),
            replaced: Vec::new(),
            snapshot_complete: false,
        }
    }

    /// Starts a new connection, on which the agent names every pod again.
    pub fn reconnected(&mut self) {
        self.snapshot_complete = false;
        self.pods.values_mut().for_each(|pod| pod.confirmed = false);
    }

    /// Handles a received packet and the namespaces attached to it.
    ///
    /// # Errors
    /// Returns [`CodecError`] if the connection must be dropped.
    pub fn handle(
        &mut self,
        packet: &[u8],
        mut namespaces: Vec<N>,
    ) -> Result<Command<N>, CodecError> {
        let request: WorkloadRequest = codec::decode(packet, MAX_REQUEST)?;
        let reject = |why: &str| Ok(Command::Reject(why.to_owned()));
        if !matches!(request.payload, Some(Payload::Add(_))) && !namespaces.is_empty() {
            return reject("unexpected file descriptor: only Add carries one");
        }
        match request.payload {
            Some(Payload::Add(add)) => {
                let Some(info) = add.workload_info else {
                    return reject("Add without workload_info");
                };
                if add.uid.is_empty() {
                    return reject("Add without uid");
                }
                let Some(netns) = namespaces.pop() else {
                    return reject("Add without the network namespace of a pod");
                };
                if !namespaces.is_empty() {
                    return reject("Add with more than one file descriptor");
                }
                Ok(self.add(add.uid, info, netns))
            }
            Some(Payload::Keep(keep)) => {
                if self.snapshot_complete {
                    return reject("Keep after SnapshotSent");
                }
                // An unknown pod cannot be kept: neither side has its namespace.
                if let Some(pod) = self.pods.get_mut(&keep.uid) {
                    pod.confirmed = true;
                }
                Ok(Command::Continue)
            }
            Some(Payload::Del(del)) => {
                self.pods.remove(&del.uid);
                Ok(Command::Stop { uid: del.uid })
            }
            Some(Payload::SnapshotSent(_)) => {
                if self.snapshot_complete {
                    return reject("duplicate SnapshotSent");
                }
                self.snapshot_complete = true;
                let mut removed: Vec<String> = self
                    .pods
                    .iter()
                    .filter(|(_, p)| !p.confirmed)
                    .map(|(uid, _)| uid.clone())
                    .collect();
                removed.sort();
                self.pods.retain(|_, p| p.confirmed);
                Ok(Command::SnapshotComplete { removed })
            }
            None => reject("unknown kind of request"),
        }
    }

    /// Reverts the last [`Command::Start`], which failed: what it would have replaced stays served,
    /// and the next Add starts the pod again.
    pub fn start_failed(&mut self, uid: &str) {
        self.pods.remove(uid);
        for (replaced, mut pod) in std::mem::take(&mut self.replaced) {
            // The agent has named this pod, though in another namespace.
            pod.confirmed |= replaced == uid;
            self.pods.insert(replaced, pod);
        }
    }

    /// Whether the agent has named every pod on this connection.
    pub fn snapshot_complete(&self) -> bool {
        self.snapshot_complete
    }

    fn add(&mut self, uid: String, info: WorkloadInfo, netns: N) -> Command<N> {
        if let Some(same) = self.pods.get_mut(&uid).filter(|p| p.netns == netns) {
            same.confirmed = true;
            return Command::Continue;
        }
        // A namespace is one pod's: that of another uid has left, or its Del is on the way.
        let mut others = self.pods.iter().filter(|(_, p)| p.netns == netns);
        let replaces = others.next().map(|(other, _)| other.clone());
        let replaced = [Some(&uid), replaces.as_ref()].into_iter().flatten();
        self.replaced = replaced
            .filter_map(|uid| self.pods.remove_entry(uid))
            .collect();
        let pod = ServedPod {
            netns: netns.clone(),
            confirmed: true,
        };
        self.pods.insert(uid.clone(), pod);
        Command::Start {
            uid,
            info,
            netns,
            replaces,
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
        codec::encode(
            &WorkloadRequest {
                payload: Some(payload),
            },
            MAX_REQUEST,
        )
        .unwrap()
    }

    fn add(uid: &str) -> Vec<u8> {
        packet(Payload::Add(AddWorkload {
            uid: uid.into(),
            workload_info: Some(WorkloadInfo::default()),
        }))
    }

    fn started(uid: &str, netns: u32) -> Command<u32> {
        Command::Start {
            uid: uid.into(),
            info: WorkloadInfo::default(),
            netns,
            replaces: None,
        }
    }

    #[test]
    fn a_repeated_add_changes_nothing_and_a_new_namespace_restarts_the_pod() {
        let mut s = Session::new();
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(started("a", 1)));
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(Command::Continue));
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
        s.start_failed("a");
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
        assert_eq!(
            s.handle(
                &packet(Payload::Del(DelWorkload { uid: "a".into() })),
                vec![]
            ),
            Ok(Command::Stop { uid: "a".into() })
        );
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
    }

    #[test]
    fn a_namespace_passes_to_the_pod_that_is_named_last() {
        let mut s = Session::new();
        s.handle(&add("a"), vec![1]).unwrap();
        let replacing = Command::Start {
            uid: "b".into(),
            info: WorkloadInfo::default(),
            netns: 1,
            replaces: Some("a".into()),
        };
        assert_eq!(s.handle(&add("b"), vec![1]), Ok(replacing));
        assert_eq!(s.handle(&add("a"), vec![2]), Ok(started("a", 2)));
        assert_eq!(s.handle(&add("b"), vec![1]), Ok(Command::Continue));
    }

    #[test]
    fn a_start_that_fails_leaves_what_it_would_have_replaced() {
        let mut s = Session::new();
        s.handle(&add("a"), vec![1]).unwrap();
        s.handle(&add("b"), vec![2]).unwrap();
        s.reconnected();
        s.handle(&add("a"), vec![2]).unwrap();
        s.start_failed("a");
        assert_eq!(s.handle(&add("b"), vec![2]), Ok(Command::Continue));
        assert_eq!(
            s.handle(&packet(Payload::SnapshotSent(SnapshotSent {})), vec![]),
            Ok(Command::SnapshotComplete { removed: vec![] })
        );
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(Command::Continue));
    }

    #[test]
    fn a_snapshot_removes_pods_that_it_does_not_name() {
        let mut s = Session::new();
        for (uid, netns) in [("a", 1), ("b", 2), ("c", 3)] {
            s.handle(&add(uid), vec![netns]).unwrap();
        }
        let end = packet(Payload::SnapshotSent(SnapshotSent {}));
        assert_eq!(
            s.handle(&end, vec![]),
            Ok(Command::SnapshotComplete { removed: vec![] })
        );
        s.reconnected();
        assert!(!s.snapshot_complete());
        s.handle(&add("a"), vec![1]).unwrap();
        s.handle(
            &packet(Payload::Keep(KeepWorkload { uid: "b".into() })),
            vec![],
        )
        .unwrap();
        assert_eq!(
            s.handle(&end, vec![]),
            Ok(Command::SnapshotComplete {
                removed: vec!["c".into()]
            })
        );
    }

    #[test]
    fn invalid_requests_are_rejected_and_change_nothing() {
        let mut s = Session::new();
        s.handle(&packet(Payload::SnapshotSent(SnapshotSent {})), vec![])
            .unwrap();
        let no_info = packet(Payload::Add(AddWorkload {
            uid: "a".into(),
            workload_info: None,
        }));
        let invalid = [
            (add("a"), vec![]),
            (add("a"), vec![1, 2]),
            (add(""), vec![1]),
            (no_info, vec![1]),
            (
                packet(Payload::Del(DelWorkload { uid: "a".into() })),
                vec![1],
            ),
            (
                packet(Payload::Keep(KeepWorkload { uid: "a".into() })),
                vec![],
            ),
            (packet(Payload::SnapshotSent(SnapshotSent {})), vec![]),
            (Vec::new(), vec![]),
        ];
        for (packet, namespaces) in invalid {
            assert!(
                matches!(s.handle(&packet, namespaces), Ok(Command::Reject(_))),
                "{packet:?}"
            );
        }
        assert_eq!(s.handle(&add("a"), vec![1]), Ok(started("a", 1)));
        assert!(s.handle(&[0xff; 8], vec![]).is_err());
        assert!(matches!(
            s.handle(&vec![0; 2000], vec![]),
            Err(CodecError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_long_error_is_truncated_at_a_character_boundary() {
        let bytes = answer(Err(&"ä".repeat(5000))).unwrap();
        let response: WorkloadResponse = codec::decode(&bytes, MAX_RESPONSE).unwrap();
        let Some(Response::Ack(ack)) = response.payload else {
            panic!("no ack")
        };
        assert_eq!(ack.error.len(), 1000);
    }
}
