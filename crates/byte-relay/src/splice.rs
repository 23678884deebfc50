//! Moving bulk data from one socket to another through a pipe, without copying it to user space.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use crate::StreamEnd;
use crate::copy::{Progress, Sink, Source, Stop};
use crate::turn::Turn;

/// The most that is moved at once, and the size of a pipe, in bytes.
const PIPE_SIZE: usize = 256 * 1024;
/// Less than this is not bulk: copying it is cheaper.
const SMALL: usize = 16 * 1024;
/// How many empty pipes a thread keeps.
const SPARE_PIPES: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// Closes the pipes that this thread keeps while no transfer uses them.
pub fn close_spare_pipes() {
    SPARE.with_borrow_mut(Vec::clear);
}

/// Why moving ends.
pub(crate) enum Moved {
    /// The data that arrives is no longer bulk data, or there is no pipe.
    Small,
    /// The source has half-closed.
    Finished,
    /// The direction stops.
    Stop(Stop),
}

/// Moves what arrives at one socket to the other, as long as it is bulk data. Does nothing unless
/// both sides are sockets.
pub(crate) async fn move_bulk(
    source: &mut impl Source,
    sink: &mut impl Sink,
    this: &Progress,
    record: &impl Fn(usize),
    turn: &mut Turn,
) -> Moved {
    if source.socket().is_none() || sink.socket().is_none() {
        return Moved::Small;
    }
    // If no descriptor is available, the data is copied.
    let Ok(mut pipe) = Held::take() else {
        return Moved::Small;
    };
    loop {
        let Some(from) = source.socket() else {
            return Moved::Small;
        };
        let read = tokio::select! {
            biased;
            read = pipe.fill(from) => read,
            end = sink.ended() => return Moved::Stop(Stop::Sink(end)),
        };
        let length = match read {
            Ok(0) => return Moved::Finished,
            Ok(length) => length,
            Err(e) => return Moved::Stop(Stop::Source(StreamEnd::Reset(e))),
        };
        while pipe.bytes > 0 {
            let Some(to) = sink.socket() else {
                return Moved::Small;
            };
            match pipe.drain(to).await {
                Ok(written) => record(written),
                Err(e) => return Moved::Stop(Stop::Sink(StreamEnd::Reset(e))),
            }
            this.count_write();
        }
        if turn.is_over(length) {
            yield_now().await;
        }
        if length < SMALL {
            return Moved::Small;
        }
    }
}

/// A pipe, whose ends are open.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe in use. Others use it afterwards, if it is empty.
struct Held {
    pipe: Option<Pipe>,
    /// How many bytes are in it.
    bytes: usize,
}

impl Held {
    fn take() -> io::Result<Self> {
        let pipe = match SPARE.with_borrow_mut(Vec::pop) {
            Some(pipe) => pipe,
            None => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                // A smaller one works as well: there may be a limit of the user.
                let size = i32::try_from(PIPE_SIZE).unwrap_or(i32::MAX);
                let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(size));
                Pipe { read, write }
            }
        };
        Ok(Self {
            pipe: Some(pipe),
            bytes: 0,
        })
    }

    /// Moves what has arrived at a socket into the empty pipe; nothing is a half-close. May be
    /// cancelled.
    async fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Ok(0);
        };
        loop {
            from.readable().await?;
            let moved = from.try_io(Interest::READABLE, || {
                splice_some(from, &pipe.write, PIPE_SIZE)
            });
            match moved {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(moved) => {
                    self.bytes += moved;
                    #[cfg(test)]
                    tests::MOVED.set(tests::MOVED.get() + moved);
                    return Ok(moved);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Moves the first bytes of the pipe to a socket, as many as it accepts, at least one.
    async fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Ok(0);
        };
        loop {
            to.writable().await?;
            let moved = to.try_io(Interest::WRITABLE, || {
                splice_some(&pipe.read, to, self.bytes)
            });
            match moved {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(moved) => {
                    self.bytes -= moved;
                    return Ok(moved);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// Moves up to `length` bytes, as many as are there and accepted. Does not wait.
fn splice_some(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, length, flags)?)
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take().filter(|_| self.bytes == 0) else {
            return;
        };
        // The thread may be ending.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_PIPES {
                spare.push(pipe);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{Future, pending, poll_fn};
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::pin::pin;
    use std::thread;

    use netns::sockopt::reset_on_close;

    use super::*;
    use crate::{LastAnswer, relay_tcp};

    thread_local! {
        /// How many bytes this thread has moved.
        pub(super) static MOVED: Cell<usize> = const { Cell::new(0) };
    }

    const BYTES: usize = 16 << 20;

    /// The application's end of a connection, and the relay's.
    fn connection() -> (std::net::TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let application = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (relay, _) = listener.accept().unwrap();
        relay.set_nonblocking(true).unwrap();
        (application, TcpStream::from_std(relay).unwrap())
    }

    fn pattern(seed: u8) -> Vec<u8> {
        let byte = |i: usize| (i / 251 + i).to_le_bytes()[0] ^ seed;
        (0..BYTES).map(byte).collect()
    }

    /// Sends everything, half-closes, and returns what it receives.
    fn exchange(tcp: std::net::TcpStream, seed: u8) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut sending = tcp.try_clone().unwrap();
            let sender = thread::spawn(move || {
                sending.write_all(&pattern(seed)).unwrap();
                sending.shutdown(Shutdown::Write).unwrap();
            });
            let (mut received, mut tcp) = (Vec::new(), tcp);
            tcp.read_to_end(&mut received).unwrap();
            sender.join().unwrap();
            received
        })
    }

    /// No other connection waits for more than a turn of each direction.
    #[tokio::test]
    async fn bulk_data_is_moved_in_both_directions_in_turns() {
        let ((client, down), (server, up)) = (connection(), connection());
        let (client, server) = (exchange(client, 1), exchange(server, 2));
        let (received, sent) = (Cell::new(0), Cell::new(0));
        let add = |to: &Cell<usize>, n: usize| to.set(to.get() + n);
        let before = MOVED.get();
        let mut idle = pin!(pending());
        let relaying = relay_tcp(
            down,
            up,
            |n| add(&received, n),
            |n| add(&sent, n),
            LastAnswer::never(idle.as_mut()),
            pending::<()>(),
        );
        tokio::pin!(relaying);
        let mut most = 0;
        let ended = poll_fn(|cx| {
            let before = received.get() + sent.get();
            let poll = relaying.as_mut().poll(cx);
            most = most.max(received.get() + sent.get() - before);
            poll
        });
        assert!(matches!(ended.await, Ok(None)));
        assert_eq!((received.get(), sent.get()), (BYTES, BYTES));
        assert!(server.join().unwrap() == pattern(1), "client to server");
        assert!(client.join().unwrap() == pattern(2), "server to client");
        let moved = MOVED.get() - before;
        assert!(moved > 0, "nothing was moved");
        assert!(most <= 2 * (Turn::BYTES + PIPE_SIZE), "{most} in a turn");
        assert!(!SPARE.with_borrow(Vec::is_empty), "pipes are kept");
        close_spare_pipes();
        assert!(SPARE.with_borrow(Vec::is_empty));
    }

    /// What is in a pipe when the sink's side is reset is not delivered to another connection.
    #[tokio::test]
    async fn a_reset_ends_moving_and_no_pipe_with_bytes_is_used_again() {
        for _ in 0..8 {
            let ((mut client, down), (server, up)) = (connection(), connection());
            let sender = thread::spawn(move || {
                let error = loop {
                    if let Err(e) = client.write_all(&[3; 1 << 16]) {
                        break e;
                    }
                };
                error.kind()
            });
            let reader = thread::spawn(move || {
                let mut server = server;
                server.read_exact(&mut vec![0; BYTES]).unwrap();
                reset_on_close(&server).unwrap();
            });
            let relayed = relay_tcp(
                down,
                up,
                |_| {},
                |_| {},
                LastAnswer::never(pin!(pending())),
                pending::<()>(),
            )
            .await;
            assert!(
                matches!(relayed, Ok(Some(StreamEnd::Reset(_)))),
                "{relayed:?}"
            );
            reader.join().unwrap();
            let kind = sender.join().unwrap();
            let is_reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(is_reset.contains(&kind), "{kind}");
        }
        let pipes = SPARE.with_borrow_mut(std::mem::take);
        for pipe in &pipes {
            let empty = nix::unistd::read(&pipe.read, &mut [0]);
            assert_eq!(empty, Err(nix::errno::Errno::EAGAIN));
        }
    }

    #[tokio::test]
    async fn small_messages_between_bulk_data_arrive_in_order() {
        let ((client, down), (server, up)) = (connection(), connection());
        let sizes = || (0..200).map(|i: usize| if i.is_multiple_of(7) { 700_000 } else { i + 1 });
        let sender = thread::spawn(move || {
            let mut client = client;
            for (i, size) in sizes().enumerate() {
                let byte = u8::try_from(i % 256).unwrap();
                client.write_all(&vec![byte; size]).unwrap();
            }
            client.shutdown(Shutdown::Write).unwrap();
        });
        let reader = thread::spawn(move || {
            let mut server = server;
            for (i, size) in sizes().enumerate() {
                let mut bytes = vec![0; size];
                server.read_exact(&mut bytes).unwrap();
                assert!(bytes.iter().all(|b| usize::from(*b) == i % 256), "{i}");
            }
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        });
        let relayed = relay_tcp(
            down,
            up,
            |_| {},
            |_| {},
            LastAnswer::never(pin!(pending())),
            pending::<()>(),
        )
        .await;
        assert!(matches!(relayed, Ok(None)), "{relayed:?}");
        sender.join().unwrap();
        reader.join().unwrap();
    }
}
