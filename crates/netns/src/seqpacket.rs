//! `SOCK_SEQPACKET` Unix sockets that carry whole messages, each with at most one file descriptor.
//!
//! Both protocols between our processes (plugin-agent and agent-proxy) use them: one message is one packet, so there is
//! no framing to get wrong, and a descriptor arrives with exactly the message it belongs to.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The largest message that any of our protocols sends, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// One received message.
#[derive(Debug)]
pub struct Packet {
    /// The bytes, never empty.
    pub data: Vec<u8>,
    /// Descriptors that came with it (close-on-exec). A well-behaved peer sends at most one.
    pub fds: Vec<OwnedFd>,
}

/// A connected seqpacket socket with blocking calls.
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

impl SeqPacket {
    /// Connects to a listening socket.
    ///
    /// # Errors
    /// Those of connect(2): the path does not exist, nobody listens, permission denied.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path.as_ref())?)?;
        Ok(Self(fd))
    }

    /// A connected pair, for tests of the two ends of a protocol.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Bounds how long one send or receive may block; zero is not allowed.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let value = TimeVal::microseconds(i64::try_from(limit.as_micros().max(1)).unwrap_or(i64::MAX));
        setsockopt(&self.0, sockopt::ReceiveTimeout, &value)?;
        setsockopt(&self.0, sockopt::SendTimeout, &value)?;
        Ok(())
    }

    /// Sends one message, with a descriptor if one is given.
    ///
    /// # Errors
    /// Those of sendmsg(2); `WouldBlock` when the time limit passed.
    pub fn send(&self, data: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw = fd.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> = raw.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let iov = [IoSlice::new(data)];
        let send = || Ok(sendmsg::<()>(self.0.as_raw_fd(), &iov, &control, MsgFlags::MSG_NOSIGNAL, None)?);
        let sent = self.uninterrupted(send)?;
        if sent == data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one message; `None` when the peer has closed.
    ///
    /// # Errors
    /// Those of recvmsg(2); `WouldBlock` when the time limit passed; `InvalidData` when the message or its descriptors
    /// were too large to be received whole (descriptors that did arrive are closed).
    pub fn recv(&self) -> io::Result<Option<Packet>> {
        self.uninterrupted(|| recv_packet(&self.0, MAX_PACKET))
    }

    /// Unlike others, a call with a time limit ends early also when the process is only stopped for a while, by a freezer or
    /// a debugger. It goes on with what is left of its time.
    fn uninterrupted<T>(&self, call: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let started = Instant::now();
        let mut limit = None;
        let outcome = loop {
            match call() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
            let Some(whole) = *limit.get_or_insert(self.timeout()?) else { continue };
            match whole.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => self.set_timeout(left)?,
                None => break Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        if let Some(Some(whole)) = limit {
            self.set_timeout(whole)?;
        }
        outcome
    }

    /// How long one send or receive may block, if there is a limit.
    fn timeout(&self) -> io::Result<Option<Duration>> {
        let micros = getsockopt(&self.0, sockopt::ReceiveTimeout)?.num_microseconds();
        Ok(u64::try_from(micros).ok().filter(|micros| *micros > 0).map(Duration::from_micros))
    }

    /// User and process of the other end, as the kernel recorded them at connect time.
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

/// Who is at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective user id.
    pub uid: u32,
    /// Process id in our pid namespace; 0 when it is not visible there.
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
    /// Binds and listens with mode 0600. A socket file that a dead process left behind is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another process is listening there; those of bind(2) otherwise.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        if SeqPacket::connect(&path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another process listens on {}", path.display()),
            ));
        }
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        // Bound under another name and renamed, so that nobody ever meets a socket with looser permissions.
        let staged = path.with_extension(format!("new{}", std::process::id()));
        let _ = fs::remove_file(&staged);
        bind(fd.as_raw_fd(), &UnixAddr::new(&staged)?)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(128)?)?;
        fs::rename(&staged, &path)?;
        let inode = inode_of(&path)?;
        Ok(Self { fd, path, inode })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next waiting connection. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` when nobody waits; those of accept(2) otherwise.
    pub fn accept(&self) -> io::Result<SeqPacket> {
        let raw = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just returned this descriptor and nobody else knows it.
        Ok(SeqPacket(unsafe { OwnedFd::from_raw_fd(raw) }))
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // Only our own file: a successor may have put its socket in our place.
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
    let (len, truncated, fds) = recv_with_descriptors(fd, &mut data)?;
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was too large and was cut off"));
    }
    if len == 0 && fds.is_empty() {
        return Ok(None);
    }
    data.truncate(len);
    Ok(Some(Packet { data, fds }))
}

/// One recvmsg(2): how many bytes, whether anything was cut off, and every descriptor that has been installed here. nix's
/// own call hides the descriptors of a message that was cut off, which then stay open for ever.
fn recv_with_descriptors(fd: &OwnedFd, data: &mut [u8]) -> io::Result<(usize, bool, Vec<OwnedFd>)> {
    const ROOM: usize = 4; // descriptors; what does not fit is never installed
    let mut control = nix::cmsg_space!([RawFd; ROOM]);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: msghdr is plain data, for which all zeros mean "nothing there".
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    (msg.msg_iov, msg.msg_iovlen) = (&raw mut iov, 1);
    (msg.msg_control, msg.msg_controllen) = (control.as_mut_ptr().cast(), control.capacity() as _);
    // SAFETY: every pointer in `msg` is to a live buffer of the length that stands beside it.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled `control` with whole headers and set msg_controllen to where they end; each
    // descriptor in them has just been installed for this message, and is taken once.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const msg);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                let installed = (0..bytes / size_of::<RawFd>()).map(|i| first.add(i).read_unaligned());
                fds.extend(installed.map(|fd| OwnedFd::from_raw_fd(fd)));
            }
            header = libc::CMSG_NXTHDR(&raw const msg, header);
        }
    }
    Ok((len, msg.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0, fds))
}

fn peer_credentials(fd: &OwnedFd) -> io::Result<PeerCredentials> {
    let c = getsockopt(fd, sockopt::PeerCredentials)?;
    Ok(PeerCredentials { uid: c.uid(), pid: c.pid() })
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

        /// Puts a connected socket on the current runtime.
        ///
        /// # Errors
        /// When it cannot be made non-blocking or cannot be registered.
        pub fn new(socket: SeqPacket) -> io::Result<Self> {
            let flags = OFlag::from_bits_retain(fcntl(&socket.0, FcntlArg::F_GETFL)?);
            fcntl(&socket.0, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            // SAFETY: a SeqPacket owns its descriptor and returns the same open one for as long as it lives.
            let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) };
            Ok(Self(fd?))
        }

        /// See [`SeqPacket::send`]. Safe to cancel: a message is sent whole or not at all.
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

        /// See [`SeqPacket::recv`]. Safe to cancel: a message is received whole or stays in the socket.
        ///
        /// # Errors
        /// Those of recvmsg(2), and `InvalidData` for a message that was cut off.
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
            let listener = SeqPacketListener::bind(path)?;
            // SAFETY: a listener owns its descriptor and returns the same open one for as long as it lives.
            let fd = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
            Ok(Self(fd?))
        }

        /// The next connection.
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
    fn a_message_arrives_whole_with_its_descriptor() {
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
    fn descriptors_of_a_message_that_is_cut_off_are_closed() {
        let (a, b) = SeqPacket::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        for count in [3, 100] {
            let raw = vec![writer.as_raw_fd(); count];
            let control = [ControlMessage::ScmRights(&raw)];
            let sent = sendmsg::<()>(a.0.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None);
            assert_eq!(sent, Ok(1));
            match b.recv() {
                Ok(packet) => assert_eq!(packet.unwrap().fds.len(), 3),
                Err(e) => assert_eq!((e.kind(), count), (io::ErrorKind::InvalidData, 100)),
            }
        }
        drop(writer);
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0), "no copy of the writing end is open any more");
    }

    #[test]
    fn a_silent_peer_runs_into_the_time_limit() {
        let (_a, b) = SeqPacket::pair().unwrap();
        b.set_timeout(Duration::from_millis(20)).unwrap();
        assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = std::env::temp_dir().join(format!("seqpacket-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s.sock");
        let first = SeqPacketListener::bind(&path).unwrap();
        assert_eq!(SeqPacketListener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let other = dir.join("t.sock");
        let _ = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map(|fd| {
            bind(fd.as_raw_fd(), &UnixAddr::new(&other).unwrap()).unwrap();
        });
        assert!(other.exists());
        let again = SeqPacketListener::bind(&other).unwrap();
        assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o600);
        drop(again);
        assert!(!other.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
