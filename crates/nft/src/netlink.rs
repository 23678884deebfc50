//! Netlink sockets: a request and its answers, for every netlink family.
//!
//! A process in a pod can create any number of objects, and the kernel lists them all. Whatever is
//! read has a [`Budget`], so that no pod takes more than its share of the reader's memory and time.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::batch::NLM_F_ACK;

/// Acknowledgement or error (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
/// End of a dump (linux/netlink.h).
const NLMSG_DONE: u16 = 3;

/// Sizes of the socket's buffers in bytes. The kernel doubles them, because it also counts its own
/// structures, and takes a batch of nf_tables as one message: a set element takes up to 36 bytes.
const SEND_BUFFER: usize = 1 << 20;
const RECEIVE_BUFFER: usize = 1 << 20;

/// Size in bytes of what is received at once; a dump arrives in parts of at most 32 KiB.
const RECEIVED: usize = 64 * 1024;

thread_local! {
    /// What this thread receives into: clearing a new buffer would take longer than the kernel's
    /// answer to most requests.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Maximum number of requests in one send: an error for each fits into the default receive buffer
/// of 208 KiB, in which a small message takes 768 bytes.
const MAX_REQUESTS: usize = 200;

/// Maximum number of objects that one request lists, unless it has another [`Budget`]. Pods have
/// dozens of chains, rules and addresses.
pub const MAX_OBJECTS: usize = 32_768;
/// Average size in bytes from which fewer objects are read. Those that Underpass reads have 50 to
/// 400 bytes; one rule of nf_tables may have 64 KiB.
const OBJECT_SIZE: usize = 512;

/// How much may still be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    limit: usize,
    objects: usize,
    bytes: usize,
}

impl Budget {
    /// A budget for a number of objects of 512 bytes.
    pub const fn of(objects: usize) -> Self {
        Self {
            limit: objects,
            objects,
            bytes: objects.saturating_mul(OBJECT_SIZE),
        }
    }

    /// Accounts for an object of a size in bytes.
    fn spend(&mut self, bytes: usize) -> io::Result<()> {
        let left = (self.objects.checked_sub(1)).zip(self.bytes.checked_sub(bytes));
        let (objects, bytes) = left.ok_or_else(|| TooMany::of(self.limit))?;
        (self.objects, self.bytes) = (objects, bytes);
        Ok(())
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(MAX_OBJECTS)
    }
}

/// There is more than the budget allows. Likely cause: a process in the pod creates objects without
/// end.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} exist, or more than {kib} KiB", kib = limit * OBJECT_SIZE / 1024)]
pub struct TooMany {
    limit: usize,
}

impl TooMany {
    /// The error of a limit.
    pub fn of(limit: usize) -> io::Error {
        io::Error::other(Self { limit })
    }

    /// Whether an error is this one.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// A netlink family: the kernel subsystem that a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// nf_tables.
    Netfilter,
    /// Links, ip rules and routes.
    Route,
    /// Sockets of other families.
    SockDiag,
}

/// A netlink socket of the network namespace that the thread was in when opening it.
#[derive(Debug)]
pub struct NetlinkSocket(OwnedFd);

impl NetlinkSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(protocol: Protocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            match protocol {
                Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
                Protocol::Route => SockProtocol::NetlinkRoute,
                Protocol::SockDiag => SockProtocol::NetlinkSockDiag,
            },
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Fails without CAP_NET_ADMIN in the initial user namespace; the defaults suffice for pods
        // without thousands of open connections.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        // Do not wait forever for a kernel that does not answer.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self(fd))
    }

    /// Sends a request and passes each answer to `answer`, until the acknowledgement or the end of
    /// the dump.
    ///
    /// # Errors
    /// The error that the kernel or `answer` returned, or that of the socket. [`TooMany`] if the
    /// budget does not suffice. After an error other than the kernel's, the socket must not be used
    /// again, because it may hold further answers.
    pub fn request(
        &self,
        request: &[u8],
        budget: &mut Budget,
        mut answer: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.send(request)?;
        let mut outcome_of = |m: &Message<'_>| {
            let outcome = m.outcome();
            if outcome.is_some() {
                return outcome;
            }
            let accepted = budget.spend(m.bytes.len()).and_then(|()| answer(m));
            accepted.err().map(Err)
        };
        loop {
            let outcome = self.receive(|found| found.iter().find_map(&mut outcome_of))?;
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Sends requests that the kernel handles in order, continuing after errors. Returns the errors
    /// with the index of their request.
    ///
    /// Only the last request is acknowledged: one acknowledgement each would overflow the receive
    /// buffer. The requests need no sequence numbers.
    ///
    /// # Errors
    /// That of the socket, which must not be used again.
    pub fn request_all(&self, requests: &[Vec<u8>]) -> io::Result<Vec<(usize, io::Error)>> {
        let mut errors = Vec::new();
        for (n, part) in requests.chunks(MAX_REQUESTS).enumerate() {
            let first = n * MAX_REQUESTS;
            self.send(&batch(part))?;
            let of_part = self.outcomes_until(part.len())?;
            errors.extend(of_part.into_iter().map(|(i, e)| (first + i, e)));
        }
        Ok(errors)
    }

    /// Receives errors until the outcome of the request with this sequence number.
    fn outcomes_until(&self, last: usize) -> io::Result<Vec<(usize, io::Error)>> {
        let mut errors = Vec::new();
        let mut is_last = |m: &Message<'_>| {
            let seq = m.seq as usize;
            if let Some(Err(e)) = m.outcome() {
                errors.push((seq.saturating_sub(1), e));
            }
            seq >= last
        };
        while !self.receive(|found| found.iter().any(&mut is_last))? {}
        Ok(errors)
    }

    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        if message.len() > SEND_BUFFER {
            let _ = setsockopt(&self.0, sockopt::SndBufForce, &message.len());
        }
        Ok(send(self.0.as_raw_fd(), message, MsgFlags::empty()).map(drop)?)
    }

    /// Waits for messages, which the kernel sent together, and passes them to `read`.
    pub(crate) fn receive<T>(&self, read: impl FnOnce(&[Message<'_>]) -> T) -> io::Result<T> {
        let mut buffer = BUFFER.take();
        if buffer.is_empty() {
            buffer = vec![0; RECEIVED]; // the first time, or within `read`
        }
        let received = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty());
        let result = received.map(|n| read(&messages(buffer.get(..n).unwrap_or_default())));
        BUFFER.set(buffer);
        Ok(result?)
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A netlink message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The whole message, with its header.
    pub bytes: &'a [u8],
    pub(crate) body: &'a [u8],
    pub(crate) kind: u16,
    pub(crate) seq: u32,
}

impl Message<'_> {
    /// The result of a request, if this message reports it.
    pub(crate) fn outcome(&self) -> Option<io::Result<()>> {
        match self.kind {
            NLMSG_DONE => Some(Ok(())),
            NLMSG_ERROR => {
                let code = self.body.get(..4).and_then(|b| b.try_into().ok());
                Some(match code.map_or(-libc::EPROTO, i32::from_ne_bytes) {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                })
            }
            _ => None,
        }
    }
}

/// Joins requests: numbers them from 1, and asks for an acknowledgement of the last.
fn batch(requests: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (seq, request) in (1u32..).zip(requests) {
        let start = out.len();
        out.extend_from_slice(request);
        out[start + 8..start + 12].copy_from_slice(&seq.to_ne_bytes());
        if seq as usize == requests.len() {
            set_flag(&mut out[start..], NLM_F_ACK);
        }
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// Sets a flag in the header of the first message of a buffer.
pub(crate) fn set_flag(message: &mut [u8], flag: u16) {
    let flags = u16::from_ne_bytes([message[6], message[7]]) | flag;
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
}

/// Splits a received buffer into messages; stops at the first that exceeds the buffer.
pub(crate) fn messages(mut buffer: &[u8]) -> Vec<Message<'_>> {
    let mut out = Vec::new();
    while let Some(header) = buffer.get(..16) {
        let field = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let len = field(0) as usize;
        let (Some(bytes), Some(body)) = (buffer.get(..len), buffer.get(16..len)) else {
            break;
        };
        out.push(Message {
            bytes,
            body,
            kind: u16::from_ne_bytes([header[4], header[5]]),
            seq: field(8),
        });
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message without flags, sequence number and port id.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(16 + body.len()).unwrap();
        let mut out = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn buffers_are_split_into_messages() {
        let buffer = [message(20, b"abcde"), message(NLMSG_DONE, &[0; 4])].concat();
        let found = messages(&buffer);
        let kinds: Vec<u16> = found.iter().map(|m| m.kind).collect();
        assert_eq!(kinds, [20, NLMSG_DONE]);
        assert_eq!((found[0].body, found[0].bytes.len()), (&b"abcde"[..], 21));
        assert_eq!(messages(&buffer[..buffer.len() - 1]).len(), 1);
        assert_eq!(messages(&[8, 0, 0, 0]).len(), 0);
        assert_eq!(
            messages(&[0; 16]).len(),
            0,
            "a length shorter than the header"
        );
    }

    #[test]
    fn a_budget_limits_number_and_size_of_objects() {
        let mut budget = Budget::of(3);
        let spent: Vec<bool> = [1, 1, 1, 1].map(|n| budget.spend(n).is_ok()).into();
        assert_eq!(spent, [true, true, true, false]);
        let mut budget = Budget::of(3);
        let large = [2 * OBJECT_SIZE, OBJECT_SIZE + 1];
        assert_eq!(large.map(|n| budget.spend(n).is_ok()), [true, false]);
        let error = TooMany::of(4096);
        assert!(TooMany::is(&error) && !TooMany::is(&io::Error::other("x")));
        let text = "more than 4096 exist, or more than 2048 KiB";
        assert_eq!(error.to_string(), text);
    }

    /// Every namespace has a loopback interface; listing it needs no privilege.
    #[test]
    fn a_dump_ends_where_its_budget_does() {
        const GETLINK: u16 = 18;
        let mut request = message(GETLINK, &[0; 16]);
        set_flag(&mut request, crate::batch::NLM_F_REQUEST | 0x300); // NLM_F_DUMP
        let list = |mut budget: Budget| {
            let socket = NetlinkSocket::open(Protocol::Route).unwrap();
            socket.request(&request, &mut budget, |_| Ok(()))
        };
        list(Budget::default()).unwrap();
        assert!(TooMany::is(&list(Budget::of(0)).unwrap_err()));
    }

    #[test]
    fn only_the_last_of_many_requests_is_acknowledged() {
        let requests: Vec<Vec<u8>> = (0..3).map(|n| message(20 + n, &[0; 5])).collect();
        let sent = batch(&requests);
        let found = messages(&sent);
        let headers = found.iter().map(|m| (m.kind, m.seq, m.bytes[6]));
        assert_eq!(
            headers.collect::<Vec<_>>(),
            [(20, 1, 0), (21, 2, 0), (22, 3, 4)]
        );
    }

    /// The kernel rejects requests of an unknown kind, without a privilege.
    #[test]
    fn every_error_of_a_thousand_requests_is_reported() {
        let socket = NetlinkSocket::open(Protocol::Route).unwrap();
        let mut request = message(0x7fff, &[0; 4]);
        set_flag(&mut request, crate::batch::NLM_F_REQUEST);
        let errors = socket.request_all(&vec![request; 1000]).unwrap();
        let indices = errors.iter().map(|(i, _)| *i);
        assert!(indices.eq(0..1000), "{} errors", errors.len());
        let codes = errors.iter().map(|(_, e)| e.raw_os_error());
        assert!(codes.into_iter().all(|e| e == Some(libc::EOPNOTSUPP)));
        assert_eq!(socket.request_all(&[]).unwrap().len(), 0);
    }

    #[test]
    fn acknowledgements_errors_and_ends_of_dumps_are_outcomes() {
        let outcome = |kind: u16, body: &[u8]| {
            let message = message(kind, body);
            let outcome = messages(&message)[0].outcome();
            outcome.map(|o| o.map_err(|e| e.raw_os_error()))
        };
        assert_eq!(outcome(NLMSG_DONE, &[]), Some(Ok(())));
        assert_eq!(outcome(NLMSG_ERROR, &[0; 20]), Some(Ok(())));
        let refused = (-libc::EEXIST).to_ne_bytes();
        assert_eq!(
            outcome(NLMSG_ERROR, &refused),
            Some(Err(Some(libc::EEXIST)))
        );
        assert_eq!(outcome(NLMSG_ERROR, &[1]), Some(Err(Some(libc::EPROTO))));
        assert_eq!(outcome(20, &[0; 4]), None);
    }
}
