//! The agent's end of the protocol with one proxy, without I/O.
//!
//! The caller hands over what the proxy should know with [`Session::ask`], sends what [`Session::poll_transmit`] returns,
//! passes each received packet to [`Session::handle`], and calls [`Session::handle_timeout`] at [`Session::deadline`].
//! Time is passed in. An error ends the connection: the proxy connects again and gets a new session and snapshot.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::codec::{self, CodecError, MAX_REQUEST, MAX_RESPONSE};
use crate::message::{
    AddWorkload, DelWorkload, KeepWorkload, Payload, Response, SnapshotSent, Version, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello,
};

/// How long a proxy may take for its hello, and for each answer.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// One request to a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Serve this pod; its namespace must be sent along.
    Add {
        /// The pod's uid.
        uid: String,
        /// Who it is.
        info: WorkloadInfo,
    },
    /// Serve this pod on, for which the agent has no namespace.
    Keep {
        /// The pod's uid.
        uid: String,
    },
    /// Stop serving this pod.
    Del {
        /// The pod's uid.
        uid: String,
    },
    /// Every pod has been named.
    SnapshotSent,
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A runtime waits for it: it goes before everything that has not been sent yet.
    SomebodyWaits,
    /// In its turn.
    InTurn,
}

/// The proxy's answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What had been asked.
    pub request: Request,
    /// Done, or the proxy's reason why not.
    pub outcome: Result<(), String>,
}

/// Why a connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Bytes that are no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The first packet is no hello of a version that we speak.
    #[error("the proxy speaks version {0} of the protocol; this agent speaks 1")]
    Version(i32),
    /// An answer to nothing.
    #[error("the proxy answered something that had not been asked")]
    Unasked,
    /// No answer in time.
    #[error("the proxy did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Silent,
}

/// The conversation with one proxy.
#[derive(Debug)]
pub struct Session {
    greeted: bool,
    window: usize,
    waiting: VecDeque<(Request, Urgency)>,
    in_flight: VecDeque<(Request, Instant)>,
    hello_deadline: Instant,
    synced: bool,
}

impl Session {
    /// A proxy has connected. At most `window` requests are unanswered at a time; a proxy that is not ours takes one.
    pub fn new(window: usize, now: Instant) -> Self {
        Self {
            greeted: false,
            window: window.max(1),
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            hello_deadline: now + ANSWER_DEADLINE,
            synced: false,
        }
    }

    /// Puts a request in line.
    pub fn ask(&mut self, request: Request, urgency: Urgency) {
        // A later request about a pod makes an unsent earlier one pointless.
        if let Some(uid) = request.uid() {
            self.waiting.retain(|(r, _)| r.uid() != Some(uid));
        }
        let urgent = |(_, u): &(Request, Urgency)| *u == Urgency::SomebodyWaits;
        let place = match urgency {
            Urgency::SomebodyWaits => self.waiting.iter().take_while(|r| urgent(r)).count(),
            Urgency::InTurn => self.waiting.len(),
        };
        self.waiting.insert(place, (request, urgency));
    }

    /// The next packet to send; its request says whether a namespace goes with it.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] when a request has names that are too long; that request is dropped.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Result<(Vec<u8>, Request), CodecError>> {
        if !self.greeted || self.in_flight.len() >= self.window {
            return None;
        }
        let (request, _) = self.waiting.pop_front()?;
        Some(codec::encode(&request.message(), MAX_REQUEST).map(|bytes| {
            self.in_flight.push_back((request.clone(), now + ANSWER_DEADLINE));
            (bytes, request)
        }))
    }

    /// Handles one packet; `None` for the hello.
    ///
    /// # Errors
    /// [`SessionError`]: drop the connection.
    pub fn handle(&mut self, packet: &[u8]) -> Result<Option<Answer>, SessionError> {
        if !self.greeted {
            let hello: ZdsHello = codec::decode(packet, MAX_RESPONSE)?;
            if hello.version != i32::from(Version::V1) {
                return Err(SessionError::Version(hello.version));
            }
            self.greeted = true;
            return Ok(None);
        }
        let response: WorkloadResponse = codec::decode(packet, MAX_RESPONSE)?;
        let (Some(Response::Ack(ack)), Some((request, _))) = (response.payload, self.in_flight.pop_front()) else {
            return Err(SessionError::Unasked);
        };
        let outcome = if ack.error.is_empty() { Ok(()) } else { Err(ack.error) };
        self.synced |= request == Request::SnapshotSent && outcome.is_ok();
        Ok(Some(Answer { request, outcome }))
    }

    /// When to call [`Session::handle_timeout`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.greeted {
            return Some(self.hello_deadline);
        }
        self.in_flight.front().map(|(_, deadline)| *deadline)
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`SessionError::Silent`]: drop the connection.
    pub fn handle_timeout(&self, now: Instant) -> Result<(), SessionError> {
        if self.deadline().is_some_and(|d| d <= now) { Err(SessionError::Silent) } else { Ok(()) }
    }

    /// Whether the proxy knows every pod of the snapshot.
    pub fn synced(&self) -> bool {
        self.synced
    }
}

impl Request {
    /// The pod that it is about.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Add { uid, .. } | Self::Keep { uid } | Self::Del { uid } => Some(uid),
            Self::SnapshotSent => None,
        }
    }

    /// Whether it fits into a packet.
    pub fn fits(&self) -> bool {
        codec::encode(&self.message(), MAX_REQUEST).is_ok()
    }

    fn message(&self) -> WorkloadRequest {
        let payload = match self.clone() {
            Self::Add { uid, info } => Payload::Add(AddWorkload { uid, workload_info: Some(info) }),
            Self::Keep { uid } => Payload::Keep(KeepWorkload { uid }),
            Self::Del { uid } => Payload::Del(DelWorkload { uid }),
            Self::SnapshotSent => Payload::SnapshotSent(SnapshotSent {}),
        };
        WorkloadRequest { payload: Some(payload) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy;

    fn add(uid: &str) -> Request {
        Request::Add { uid: uid.into(), info: WorkloadInfo::default() }
    }

    fn del(uid: &str) -> Request {
        Request::Del { uid: uid.into() }
    }

    fn greeted(window: usize, now: Instant) -> Session {
        let mut s = Session::new(window, now);
        assert_eq!(s.handle(&proxy::hello().unwrap()), Ok(None));
        s
    }

    fn sent(s: &mut Session, now: Instant) -> Vec<Request> {
        std::iter::from_fn(|| s.poll_transmit(now)).map(|r| r.unwrap().1).collect()
    }

    #[test]
    fn nothing_is_sent_before_the_hello() {
        let now = Instant::now();
        let mut s = Session::new(1, now);
        s.ask(add("a"), Urgency::InTurn);
        assert!(s.poll_transmit(now).is_none());
        assert_eq!(s.handle_timeout(now + ANSWER_DEADLINE), Err(SessionError::Silent));
        s.handle(&proxy::hello().unwrap()).unwrap();
        assert_eq!(sent(&mut s, now), [add("a")]);
    }

    #[test]
    fn a_pod_that_somebody_waits_for_overtakes_the_snapshot() {
        let now = Instant::now();
        let mut s = greeted(10, now);
        for r in [add("a"), add("b"), Request::SnapshotSent] {
            s.ask(r, Urgency::InTurn);
        }
        s.ask(add("x"), Urgency::SomebodyWaits);
        s.ask(add("y"), Urgency::SomebodyWaits);
        assert_eq!(sent(&mut s, now), [add("x"), add("y"), add("a"), add("b"), Request::SnapshotSent]);
    }

    #[test]
    fn a_later_request_replaces_an_unsent_one() {
        let now = Instant::now();
        let mut s = greeted(10, now);
        s.ask(add("a"), Urgency::InTurn);
        s.ask(add("b"), Urgency::InTurn);
        s.ask(del("a"), Urgency::InTurn);
        assert_eq!(sent(&mut s, now), [add("b"), del("a")]);
    }

    #[test]
    fn answers_come_in_order_and_the_window_holds() {
        let now = Instant::now();
        let mut s = greeted(1, now);
        s.ask(add("a"), Urgency::InTurn);
        s.ask(Request::SnapshotSent, Urgency::InTurn);
        assert_eq!(sent(&mut s, now), [add("a")]);
        let refused = s.handle(&proxy::answer(Err("port taken")).unwrap()).unwrap().unwrap();
        assert_eq!(refused, Answer { request: add("a"), outcome: Err("port taken".into()) });
        assert!(!s.synced());
        assert_eq!(sent(&mut s, now), [Request::SnapshotSent]);
        s.handle(&proxy::answer(Ok(())).unwrap()).unwrap();
        assert!(s.synced());
        assert_eq!(s.handle(&proxy::answer(Ok(())).unwrap()), Err(SessionError::Unasked));
    }

    #[test]
    fn a_silent_proxy_is_given_up_and_a_strange_one_too() {
        let now = Instant::now();
        let mut s = greeted(2, now);
        assert_eq!(s.deadline(), None);
        s.ask(add("a"), Urgency::InTurn);
        sent(&mut s, now);
        assert_eq!(s.handle_timeout(now + ANSWER_DEADLINE / 2), Ok(()));
        assert_eq!(s.handle_timeout(now + ANSWER_DEADLINE), Err(SessionError::Silent));
        assert!(matches!(s.handle(&[0xff; 4]), Err(SessionError::Codec(_))));
        assert_eq!(Session::new(1, now).handle(&[]), Err(SessionError::Version(0)));
        assert!(matches!(s.handle(&vec![0; 20_000]), Err(SessionError::Codec(CodecError::TooLarge { .. }))));
    }

    #[test]
    fn a_request_that_is_too_long_is_dropped_alone() {
        let now = Instant::now();
        let mut s = greeted(1, now);
        s.ask(add(&"x".repeat(2000)), Urgency::InTurn);
        s.ask(add("b"), Urgency::InTurn);
        assert!(matches!(s.poll_transmit(now), Some(Err(CodecError::TooLarge { .. }))));
        assert_eq!(sent(&mut s, now), [add("b")]);
    }
}
