//! The agent's end of the protocol with one proxy, without I/O.
//!
//! The caller queues requests with [`Session::enqueue`], sends what [`Session::poll_transmit`]
//! returns, passes each received packet to [`Session::handle`], and calls
//! [`Session::handle_timeout`] at [`Session::deadline`]. Time is passed in. After an error the
//! caller must drop the connection; the proxy then reconnects and gets a new session and snapshot.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::codec::{self, CodecError, MAX_REQUEST, MAX_RESPONSE};
use crate::message::{
    AddWorkload, DelWorkload, KeepWorkload, Payload, Response, SnapshotSent, Version, WorkloadInfo,
    WorkloadRequest, WorkloadResponse, ZdsHello,
};

/// Time limit for the proxy's hello, and for each of its answers.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// One request to a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Serve this pod; its network namespace must be attached to the packet.
    Add {
        /// The pod's uid.
        uid: String,
        /// Name and identity of the pod.
        info: WorkloadInfo,
    },
    /// Keep serving this pod, for which the agent has no network namespace.
    Keep {
        /// The pod's uid.
        uid: String,
    },
    /// Stop serving this pod.
    Del {
        /// The pod's uid.
        uid: String,
    },
    /// The snapshot is complete.
    SnapshotSent,
}

/// The priority of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Sent before all normal requests, because a container runtime waits for the result.
    Expedited,
    /// Sent in order.
    Normal,
}

/// The proxy's answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The answered request.
    pub request: Request,
    /// Success, or the proxy's error.
    pub outcome: Result<(), String>,
}

/// Why a connection must be dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A packet was too large or malformed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The first packet is not a hello of a supported version.
    #[error("unsupported ZDS version {0}: expected 1")]
    Version(i32),
    /// The proxy sent a reply without a request.
    #[error("the proxy sent a reply without a request")]
    UnexpectedReply,
    /// The proxy did not answer in time.
    #[error("the proxy did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Timeout,
}

/// A session with one proxy.
#[derive(Debug)]
pub struct Session {
    hello_received: bool,
    window: usize,
    queue: VecDeque<(Request, Urgency)>,
    in_flight: VecDeque<(Request, Instant)>,
    hello_deadline: Instant,
    synced: bool,
}

impl Session {
    /// Creates a session for a new connection. At most `window` requests are in flight at a time; a
    /// proxy other than Underpass's supports only one.
    pub fn new(window: usize, now: Instant) -> Self {
        Self {
            hello_received: false,
            window: window.max(1),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            hello_deadline: now + ANSWER_DEADLINE,
            synced: false,
        }
    }

    /// Queues a request.
    pub fn enqueue(&mut self, request: Request, urgency: Urgency) {
        // A request supersedes unsent earlier ones for the same pod.
        if let Some(uid) = request.uid() {
            self.queue.retain(|(r, _)| r.uid() != Some(uid));
        }
        let urgent = |(_, u): &(Request, Urgency)| *u == Urgency::Expedited;
        let position = match urgency {
            Urgency::Expedited => self.queue.iter().take_while(|r| urgent(r)).count(),
            Urgency::Normal => self.queue.len(),
        };
        self.queue.insert(position, (request, urgency));
    }

    /// Returns the next packet to send, with its request. For [`Request::Add`], the caller must
    /// attach the network namespace.
    ///
    /// # Errors
    /// Returns [`CodecError::TooLarge`] if names in the request are too long; that request is
    /// dropped.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
    ) -> Option<Result<(Vec<u8>, Request), CodecError>> {
        if !self.hello_received || self.in_flight.len() >= self.window {
            return None;
        }
        let (request, _) = self.queue.pop_front()?;
        Some(codec::encode(&request.message(), MAX_REQUEST).map(|bytes| {
            self.in_flight
                .push_back((request.clone(), now + ANSWER_DEADLINE));
            (bytes, request)
        }))
    }

    /// Handles a received packet. Returns `None` for the hello.
    ///
    /// # Errors
    /// Returns [`SessionError`] if the connection must be dropped.
    pub fn handle(&mut self, packet: &[u8]) -> Result<Option<Reply>, SessionError> {
        if !self.hello_received {
            let hello: ZdsHello = codec::decode(packet, MAX_RESPONSE)?;
            if hello.version != i32::from(Version::V1) {
                return Err(SessionError::Version(hello.version));
            }
            self.hello_received = true;
            return Ok(None);
        }
        let response: WorkloadResponse = codec::decode(packet, MAX_RESPONSE)?;
        let (Some(Response::Ack(ack)), Some((request, _))) =
            (response.payload, self.in_flight.pop_front())
        else {
            return Err(SessionError::UnexpectedReply);
        };
        let outcome = if ack.error.is_empty() {
            Ok(())
        } else {
            Err(ack.error)
        };
        self.synced |= request == Request::SnapshotSent && outcome.is_ok();
        Ok(Some(Reply { request, outcome }))
    }

    /// When to call [`Session::handle_timeout`].
    pub fn deadline(&self) -> Option<Instant> {
        if !self.hello_received {
            return Some(self.hello_deadline);
        }
        self.in_flight.front().map(|(_, deadline)| *deadline)
    }

    /// Checks for an expired deadline.
    ///
    /// # Errors
    /// Returns [`SessionError::Timeout`] if the connection must be dropped.
    pub fn handle_timeout(&self, now: Instant) -> Result<(), SessionError> {
        if self.deadline().is_some_and(|d| d <= now) {
            Err(SessionError::Timeout)
        } else {
            Ok(())
        }
    }

    /// Whether the proxy has accepted the whole snapshot.
    pub fn synced(&self) -> bool {
        self.synced
    }
}

impl Request {
    /// The uid of the pod, if the request refers to one.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Add { uid, .. } | Self::Keep { uid } | Self::Del { uid } => Some(uid),
            Self::SnapshotSent => None,
        }
    }

    /// Whether the request fits into a packet.
    pub fn fits(&self) -> bool {
        codec::encode(&self.message(), MAX_REQUEST).is_ok()
    }

    fn message(&self) -> WorkloadRequest {
        let payload = match self.clone() {
            Self::Add { uid, info } => Payload::Add(AddWorkload {
                uid,
                workload_info: Some(info),
            }),
            Self::Keep { uid } => Payload::Keep(KeepWorkload { uid }),
            Self::Del { uid } => Payload::Del(DelWorkload { uid }),
            Self::SnapshotSent => Payload::SnapshotSent(SnapshotSent {}),
        };
        WorkloadRequest {
            payload: Some(payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy;

    fn add(uid: &str) -> Request {
        Request::Add {
            uid: uid.into(),
            info: WorkloadInfo::default(),
        }
    }

    fn del(uid: &str) -> Request {
        Request::Del { uid: uid.into() }
    }

    fn hello_received(window: usize, now: Instant) -> Session {
        let mut s = Session::new(window, now);
        assert_eq!(s.handle(&proxy::hello().unwrap()), Ok(None));
        s
    }

    fn sent(s: &mut Session, now: Instant) -> Vec<Request> {
        std::iter::from_fn(|| s.poll_transmit(now))
            .map(|r| r.unwrap().1)
            .collect()
    }

    #[test]
    fn nothing_is_sent_before_the_hello() {
        let now = Instant::now();
        let mut s = Session::new(1, now);
        s.enqueue(add("a"), Urgency::Normal);
        assert!(s.poll_transmit(now).is_none());
        assert_eq!(
            s.handle_timeout(now + ANSWER_DEADLINE),
            Err(SessionError::Timeout)
        );
        s.handle(&proxy::hello().unwrap()).unwrap();
        assert_eq!(sent(&mut s, now), [add("a")]);
    }

    #[test]
    fn expedited_requests_overtake_the_snapshot() {
        let now = Instant::now();
        let mut s = hello_received(10, now);
        for r in [add("a"), add("b"), Request::SnapshotSent] {
            s.enqueue(r, Urgency::Normal);
        }
        s.enqueue(add("x"), Urgency::Expedited);
        s.enqueue(add("y"), Urgency::Expedited);
        assert_eq!(
            sent(&mut s, now),
            [
                add("x"),
                add("y"),
                add("a"),
                add("b"),
                Request::SnapshotSent
            ]
        );
    }

    #[test]
    fn a_later_request_replaces_an_unsent_one() {
        let now = Instant::now();
        let mut s = hello_received(10, now);
        s.enqueue(add("a"), Urgency::Normal);
        s.enqueue(add("b"), Urgency::Normal);
        s.enqueue(del("a"), Urgency::Normal);
        assert_eq!(sent(&mut s, now), [add("b"), del("a")]);
    }

    #[test]
    fn replies_match_requests_in_order_and_the_window_limits_them() {
        let now = Instant::now();
        let mut s = hello_received(1, now);
        s.enqueue(add("a"), Urgency::Normal);
        s.enqueue(Request::SnapshotSent, Urgency::Normal);
        assert_eq!(sent(&mut s, now), [add("a")]);
        let rejected = s
            .handle(&proxy::answer(Err("port in use")).unwrap())
            .unwrap()
            .unwrap();
        assert_eq!(
            rejected,
            Reply {
                request: add("a"),
                outcome: Err("port in use".into())
            }
        );
        assert!(!s.synced());
        assert_eq!(sent(&mut s, now), [Request::SnapshotSent]);
        s.handle(&proxy::answer(Ok(())).unwrap()).unwrap();
        assert!(s.synced());
        assert_eq!(
            s.handle(&proxy::answer(Ok(())).unwrap()),
            Err(SessionError::UnexpectedReply)
        );
    }

    #[test]
    fn timeouts_and_protocol_violations_end_the_session() {
        let now = Instant::now();
        let mut s = hello_received(2, now);
        assert_eq!(s.deadline(), None);
        s.enqueue(add("a"), Urgency::Normal);
        sent(&mut s, now);
        assert_eq!(s.handle_timeout(now + ANSWER_DEADLINE / 2), Ok(()));
        assert_eq!(
            s.handle_timeout(now + ANSWER_DEADLINE),
            Err(SessionError::Timeout)
        );
        assert!(matches!(s.handle(&[0xff; 4]), Err(SessionError::Codec(_))));
        assert_eq!(
            Session::new(1, now).handle(&[]),
            Err(SessionError::Version(0))
        );
        assert!(matches!(
            s.handle(&vec![0; 20_000]),
            Err(SessionError::Codec(CodecError::TooLarge { .. }))
        ));
    }

    #[test]
    fn an_oversized_request_is_dropped_and_the_next_one_sent() {
        let now = Instant::now();
        let mut s = hello_received(1, now);
        s.enqueue(add(&"x".repeat(2000)), Urgency::Normal);
        s.enqueue(add("b"), Urgency::Normal);
        assert!(matches!(
            s.poll_transmit(now),
            Some(Err(CodecError::TooLarge { .. }))
        ));
        assert_eq!(sent(&mut s, now), [add("b")]);
    }
}
