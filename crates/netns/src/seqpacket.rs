//! `SOCK_SEQPACKET` Unix sockets, which carry messages with at most one file descriptor each.
//!
//! Both protocols between Underpass's processes (plugin-agent and agent-proxy) use them: one
//! message is one packet, so no framing is needed, and a descriptor arrives with the message it
//! belongs to.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Maximum message size of these protocols, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// One received message.
#[derive(Debug)]
pub struct Packet {
    /// Message bytes; never empty.
    pub data: Vec<u8>,
    /// Descriptors received with it (close-on-exec). A well-behaved peer sends at most one.
    pub fds: Vec<OwnedFd>,
}

/// A connected seqpacket socket with blocking calls.
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

impl SeqPacket {
    /// Connects to a listening socket.
    ///
    /// # Errors
    /// Those of connect(2): the path does not exist, no process is listening, permission denied.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path.as_ref())?)?;
        Ok(Self(fd))
    }

    /// Creates a connected pair, for tests of both ends of a protocol.
    ///
    /// # Errors
    /// If no file descriptor is available.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = nix::sys::socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Limits how long a send or receive may block; must not be zero.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        // `TimeVal` panics for values close to i64::MAX.
        let longest = i64::MAX / 2;
        let micros = i64::try_from(limit.as_micros().max(1)).unwrap_or(longest);
        let value = TimeVal::microseconds(micros.min(longest));
        setsockopt(&self.0, sockopt::ReceiveTimeout, &value)?;
        setsockopt(&self.0, sockopt::SendTimeout, &value)?;
        Ok(())
    }

    /// Sends one message, optionally with a descriptor.
    ///
    /// # Errors
    /// Those of sendmsg(2); `WouldBlock` if the time limit was exceeded.
    pub fn send(&self, data: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw = fd.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> = raw
            .iter()
            .map(|fds| ControlMessage::ScmRights(fds))
            .collect();
        let iov = [IoSlice::new(data)];
        let send = || {
            Ok(sendmsg::<()>(
                self.0.as_raw_fd(),
                &iov,
                &control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?)
        };
        let sent = self.retry_interrupted(send)?;
        if sent == data.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Receives one message; `None` if the peer has closed the connection.
    ///
    /// # Errors
    /// Those of recvmsg(2); `WouldBlock` if the time limit was exceeded; `InvalidData` if the
    /// message or its descriptors were truncated (received descriptors are closed).
    pub fn recv(&self) -> io::Result<Option<Packet>> {
        self.retry_interrupted(|| recv_packet(&self.0, MAX_PACKET))
    }

    /// Repeats an interrupted call with the remaining time. A call with a time limit is interrupted
    /// even when a freezer or a debugger stops and continues the process, without a signal handler
    /// (signal(7)).
    fn retry_interrupted<T>(&self, call: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let started = Instant::now();
        let mut limit = None;
        let result = loop {
            match call() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
            let Some(total) = *limit.get_or_insert(self.timeout()?) else {
                continue;
            };
            match total
                .checked_sub(started.elapsed())
                .filter(|left| !left.is_zero())
            {
                Some(left) => self.set_timeout(left)?,
                None => break Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        if let Some(Some(total)) = limit {
            self.set_timeout(total)?;
        }
        result
    }

    /// The time limit of a send or receive, if there is one.
    fn timeout(&self) -> io::Result<Option<Duration>> {
        let micros = getsockopt(&self.0, sockopt::ReceiveTimeout)?.num_microseconds();
        Ok(u64::try_from(micros)
            .ok()
            .filter(|micros| *micros > 0)
            .map(Duration::from_micros))
    }

    /// User and process of the peer, as recorded by the kernel at connect time.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn peer(&self) -> io::Result<PeerCredentials> {
        peer_credentials(&self.0)
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for SeqPacket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// Credentials of the peer of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective user id.
    pub uid: u32,
    /// Process id in the caller's pid namespace; 0 if it is not visible there.
    pub pid: i32,
}

/// A listening seqpacket socket. Its file is removed when the listener is dropped.
#[derive(Debug)]
pub struct SeqPacketListener {
    fd: OwnedFd,
    path: PathBuf,
    inode: u64,
}

impl SeqPacketListener {
    /// Binds and listens with mode 0600. Replaces a socket file left behind by a dead process.
    ///
    /// # Errors
    /// `AddrInUse` if another process is listening there; those of bind(2) otherwise.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        if SeqPacket::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another process is listening on {}", path.display()),
            ));
        }
        Self::replace(path)
    }

    /// Like [`Self::bind`], but also if another process is listening there: new clients connect to
    /// this listener instead.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn replace(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        // Bind under another name and rename, so that the socket never appears with looser
        // permissions.
        let staged = path.with_extension(format!("new{}", std::process::id()));
        let _ = fs::remove_file(&staged);
        bind(fd.as_raw_fd(), &UnixAddr::new(&staged)?)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(128)?)?;
        fs::rename(&staged, &path)?;
        let inode = inode_of(&path)?;
        Ok(Self { fd, path, inode })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts the next pending connection. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` if none is pending; those of accept(2) otherwise.
    pub fn accept(&self) -> io::Result<SeqPacket> {
        let raw = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just returned this descriptor, and nothing else uses it.
        Ok(SeqPacket(unsafe { OwnedFd::from_raw_fd(raw) }))
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // Remove only this listener's file: a successor may have replaced it.
        if inode_of(&self.path).ok() == Some(self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode_of(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::symlink_metadata(path)?.ino())
}

fn recv_packet(fd: &OwnedFd, limit: usize) -> io::Result<Option<Packet>> {
    let mut data = vec![0u8; limit];
    let (len, flags, fds) = recv_with_descriptors(fd, &mut data)?;
    let truncated = if flags & libc::MSG_TRUNC != 0 {
        Some("a message was too large and was truncated")
    } else if flags & libc::MSG_CTRUNC != 0 {
        // The kernel does not report which.
        Some("a message carried too many descriptors, or this process may open no more")
    } else {
        None
    };
    if let Some(why) = truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    if len == 0 && fds.is_empty() {
        return Ok(None);
    }
    data.truncate(len);
    Ok(Some(Packet { data, fds }))
}

/// Calls recvmsg(2); returns the number of bytes, the flags of the message, and every installed
/// descriptor. nix's `recvmsg` hides the descriptors of a truncated message, so they
/// would leak.
fn recv_with_descriptors(fd: &OwnedFd, data: &mut [u8]) -> io::Result<(usize, i32, Vec<OwnedFd>)> {
    const MAX_FDS: usize = 4; // the kernel installs no more than fit
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: msghdr is plain data, and all zeros is a valid, empty value.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    (msg.msg_iov, msg.msg_iovlen) = (&raw mut iov, 1);
    (msg.msg_control, msg.msg_controllen) = (control.as_mut_ptr().cast(), control.capacity() as _);
    // SAFETY: every pointer in `msg` is to a live buffer of the given length.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled `control` with complete headers and set msg_controllen to their
    // end; each descriptor in them was just installed for this message, and is wrapped once.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const msg);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                let installed =
                    (0..bytes / size_of::<RawFd>()).map(|i| first.add(i).read_unaligned());
                fds.extend(installed.map(|fd| OwnedFd::from_raw_fd(fd)));
            }
            header = libc::CMSG_NXTHDR(&raw const msg, header);
        }
    }
    Ok((len, msg.msg_flags, fds))
}

fn peer_credentials(fd: &OwnedFd) -> io::Result<PeerCredentials> {
    let c = getsockopt(fd, sockopt::PeerCredentials)?;
    Ok(PeerCredentials {
        uid: c.uid(),
        pid: c.pid(),
    })
}

#[cfg(feature = "tokio")]
pub use asynchronous::{AsyncSeqPacket, AsyncSeqPacketListener};

#[cfg(feature = "tokio")]
mod asynchronous {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// A connected seqpacket socket on a tokio runtime.
    #[derive(Debug)]
    pub struct AsyncSeqPacket(AsyncFd<SeqPacket>);

    impl AsyncSeqPacket {
        /// Connects (Unix sockets connect at once or fail at once).
        ///
        /// # Errors
        /// Those of [`SeqPacket::connect`].
        pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
            Self::new(SeqPacket::connect(path)?)
        }

        /// Registers a connected socket with the current runtime.
        ///
        /// # Errors
        /// If it cannot be made non-blocking or cannot be registered.
        pub fn new(socket: SeqPacket) -> io::Result<Self> {
            let flags = OFlag::from_bits_retain(fcntl(&socket.0, FcntlArg::F_GETFL)?);
            fcntl(&socket.0, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            // SAFETY: a SeqPacket owns its descriptor and returns the same open one for as long as
            // it lives.
            let fd = unsafe {
                AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE)
            };
            Ok(Self(fd?))
        }

        /// See [`SeqPacket::send`]. Cancel safe: a message is sent completely or not at all.
        ///
        /// # Errors
        /// Those of sendmsg(2).
        pub async fn send(&self, data: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
            loop {
                let mut ready = self.0.writable().await?;
                match ready.try_io(|s| s.get_ref().send(data, fd)) {
                    Ok(result) => return result,
                    Err(_would_block) => {}
                }
            }
        }

        /// Sends a message without a descriptor if the socket accepts it at once.
        ///
        /// # Errors
        /// Those of sendmsg(2); `WouldBlock` if the receiver's queue is full.
        pub fn try_send(&self, data: &[u8]) -> io::Result<()> {
            self.0.get_ref().send(data, None)
        }

        /// See [`SeqPacket::recv`]. Cancel safe: a message is received completely or stays in the
        /// socket.
        ///
        /// # Errors
        /// Those of recvmsg(2), and `InvalidData` for a truncated message.
        pub async fn recv(&self) -> io::Result<Option<Packet>> {
            loop {
                let mut ready = self.0.readable().await?;
                match ready.try_io(|s| s.get_ref().recv()) {
                    Ok(result) => return result,
                    Err(_would_block) => {}
                }
            }
        }

        /// See [`SeqPacket::peer`].
        ///
        /// # Errors
        /// Those of getsockopt(2).
        pub fn peer(&self) -> io::Result<PeerCredentials> {
            self.0.get_ref().peer()
        }
    }

    /// A listening seqpacket socket on a tokio runtime.
    #[derive(Debug)]
    pub struct AsyncSeqPacketListener(AsyncFd<SeqPacketListener>);

    impl AsyncSeqPacketListener {
        /// See [`SeqPacketListener::bind`].
        ///
        /// # Errors
        /// Those of [`SeqPacketListener::bind`].
        pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
            Self::register(SeqPacketListener::bind(path)?)
        }

        /// See [`SeqPacketListener::replace`].
        ///
        /// # Errors
        /// Those of [`SeqPacketListener::replace`].
        pub fn replace(path: impl AsRef<Path>) -> io::Result<Self> {
            Self::register(SeqPacketListener::replace(path)?)
        }

        fn register(listener: SeqPacketListener) -> io::Result<Self> {
            // SAFETY: a listener owns its descriptor and returns the same open one for as long as
            // it lives.
            let fd = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
            Ok(Self(fd?))
        }

        /// Accepts the next connection.
        ///
        /// # Errors
        /// Those of accept(2); the caller should pause before the next call.
        pub async fn accept(&self) -> io::Result<AsyncSeqPacket> {
            loop {
                let mut ready = self.0.readable().await?;
                match ready.try_io(|l| l.get_ref().accept()) {
                    Ok(result) => return AsyncSeqPacket::new(result?),
                    Err(_would_block) => {}
                }
            }
        }
    }

    impl AsFd for SeqPacketListener {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.fd.as_fd()
        }
    }

    impl std::os::fd::AsRawFd for SeqPacketListener {
        fn as_raw_fd(&self) -> std::os::fd::RawFd {
            self.fd.as_raw_fd()
        }
    }

    impl std::os::fd::AsRawFd for SeqPacket {
        fn as_raw_fd(&self) -> std::os::fd::RawFd {
            self.0.as_raw_fd()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (a, b) = SeqPacket::pair().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        a.send(b"one", Some(file.as_fd())).unwrap();
        a.send(b"two", None).unwrap();
        let first = b.recv().unwrap().unwrap();
        assert_eq!((first.data.as_slice(), first.fds.len()), (&b"one"[..], 1));
        let second = b.recv().unwrap().unwrap();
        assert_eq!((second.data.as_slice(), second.fds.len()), (&b"two"[..], 0));
        drop(a);
        assert!(b.recv().unwrap().is_none());
    }

    #[test]
    fn descriptors_of_a_truncated_message_are_closed() {
        let (a, b) = SeqPacket::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        for count in [3, 100] {
            let raw = vec![writer.as_raw_fd(); count];
            let control = [ControlMessage::ScmRights(&raw)];
            let sent = sendmsg::<()>(
                a.0.as_raw_fd(),
                &[IoSlice::new(b"x")],
                &control,
                MsgFlags::empty(),
                None,
            );
            assert_eq!(sent, Ok(1));
            match b.recv() {
                Ok(packet) => assert_eq!(packet.unwrap().fds.len(), 3),
                Err(e) => assert_eq!((e.kind(), count), (io::ErrorKind::InvalidData, 100)),
            }
        }
        drop(writer);
        assert_eq!(
            nix::unistd::read(&reader, &mut [0]),
            Ok(0),
            "no copy of the write end is open"
        );
    }

    #[test]
    fn receiving_from_a_silent_peer_times_out() {
        let (_a, b) = SeqPacket::pair().unwrap();
        b.set_timeout(Duration::from_millis(20)).unwrap();
        assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let path = dir.join("s.sock");
        let first = SeqPacketListener::bind(&path).unwrap();
        assert_eq!(
            SeqPacketListener::bind(&path).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        let other = dir.join("t.sock");
        let _ = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map(|fd| {
            bind(fd.as_raw_fd(), &UnixAddr::new(&other).unwrap()).unwrap();
        });
        assert!(other.exists());
        let again = SeqPacketListener::bind(&other).unwrap();
        assert_eq!(
            fs::metadata(&other).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(again);
        assert!(!other.exists());
    }
}
