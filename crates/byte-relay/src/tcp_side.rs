//! A TCP connection as one side of a relayed connection.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use netns::sockopt::{reset_on_close, unacknowledged};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::task::coop::consume_budget;
use tokio::time::{sleep, timeout};

use crate::StreamEnd;
use crate::chunks::Chunks;
use crate::copy::{STALLED, Side, Sink, Source};

/// How many bytes are written to a socket at once.
const WRITE_SIZE: usize = 64 * 1024;
/// Smaller reads are copied.
const SMALL_READ: usize = 32 * 1024;
/// Bounds of the interval at which undelivered data is checked, which the kernel does not report.
const CHECK_INTERVAL: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(200)];
/// How long a reset waits for sent data to arrive. A reset that overtakes data is ignored by its
/// receiver, which answers with a challenge ACK (RFC 5961), and nothing sends it again.
const RESET_DEADLINE: Duration = Duration::from_secs(2);

/// How long a peer that sends may read nothing of what precedes an orderly end.
const UNREAD: Duration = Duration::from_secs(60);

thread_local! {
    /// The buffer that is read into: idle connections hold none.
    static BUFFER: RefCell<BytesMut> = RefCell::default();
}

/// The receiving half of a connection.
pub(crate) struct TcpSource<'a> {
    half: ReadHalf<'a>,
    /// Size of the buffer that the last read has filled or not.
    size: usize,
}

/// The sending half of a connection.
pub(crate) struct TcpSink<'a>(WriteHalf<'a>);

impl<'a> Side<TcpSource<'a>, TcpSink<'a>> {
    pub(crate) fn of(tcp: &'a mut TcpStream) -> Self {
        let (read, write) = tcp.split();
        Self {
            source: TcpSource {
                half: read,
                size: 0,
            },
            sink: TcpSink(write),
        }
    }
}

/// Completes when the peer has reset the connection, or the kernel has given it up. A half-close
/// does not count: the peer may wait for an answer.
pub async fn until_reset(tcp: &TcpStream) -> io::Error {
    match tcp.ready(Interest::ERROR).await {
        // The error stays in the socket until the data before it is read.
        Ok(_) => io::ErrorKind::ConnectionReset.into(),
        Err(e) => e,
    }
}

impl Source for TcpSource<'_> {
    /// Small results are copied, so that they hold no large buffer while they wait. After a read
    /// that was not filled, tokio waits for the kernel to announce more: it does not read again
    /// only to learn that there is nothing.
    async fn read(&mut self, size: usize) -> Result<Option<Chunks>, StreamEnd> {
        self.size = size;
        let read = poll_fn(|cx| {
            BUFFER.with_borrow_mut(|buffer| {
                buffer.reserve(size);
                let mut room = (&mut *buffer).limit(size);
                let read = ready!(pin!(self.half.read_buf(&mut room)).poll(cx));
                Poll::Ready(read.map(|read| {
                    if read < SMALL_READ.min(size / 2) {
                        let bytes = Bytes::copy_from_slice(buffer);
                        buffer.clear();
                        bytes
                    } else {
                        std::mem::take(buffer).freeze()
                    }
                }))
            })
        });
        let bytes = read.await.map_err(StreamEnd::Reset)?;
        Ok(Some(bytes).filter(|b| !b.is_empty()).map(Chunks::from))
    }

    /// Copies what occupies the smaller part of its buffer.
    fn keep(&mut self, bytes: &mut Chunks) {
        if bytes.len() < self.size / 2 {
            bytes.detach();
            self.size = 0;
        }
    }

    fn reclaim(&mut self, written: Chunks) {
        if let Some(mut memory) = written.into_memory() {
            BUFFER.with_borrow_mut(|buffer| {
                if buffer.capacity() < self.size {
                    memory.reserve(self.size); // what was written is in front
                    *buffer = memory;
                }
            });
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        Some(self.half.as_ref())
    }
}

impl Sink for TcpSink<'_> {
    fn write_size(&self) -> usize {
        WRITE_SIZE
    }

    async fn write(&mut self, bytes: &mut Chunks) -> Result<(), StreamEnd> {
        match self.0.write_buf(bytes).await {
            Ok(0) => Err(StreamEnd::Reset(io::ErrorKind::WriteZero.into())),
            Ok(_) => Ok(()),
            Err(e) => Err(StreamEnd::Reset(e)),
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        Some(self.tcp())
    }

    fn finish(&mut self) {
        let _ = socket2::SockRef::from(self.tcp()).shutdown(std::net::Shutdown::Write);
    }

    async fn ended(&mut self) -> StreamEnd {
        StreamEnd::Reset(until_reset(self.tcp()).await)
    }

    async fn close(&mut self, end: &StreamEnd) {
        let is_reset = matches!(end, StreamEnd::Reset(_));
        if is_reset {
            let _ = reset_on_close(self.tcp()); // already closed
        } else {
            self.finish();
        }
        self.until_delivered(is_reset).await;
    }

    async fn reset(&mut self) {
        let _ = reset_on_close(self.tcp()); // already closed
        let _ = timeout(RESET_DEADLINE, self.until_delivered(true)).await;
    }
}

impl TcpSink<'_> {
    fn tcp(&self) -> &TcpStream {
        self.0.as_ref()
    }

    /// Waits until the peer has received what was written, as long as it reads or is silent itself.
    /// Its own bytes are discarded: closing a socket with unread bytes resets it and loses what it
    /// has not sent, and a peer that is blocked in writing may not read.
    async fn until_delivered(&mut self, is_reset: bool) {
        let mut undelivered = usize::MAX;
        let mut progress = Instant::now();
        let (mut peer_sends, mut peer_finished) = (false, false);
        let [mut interval, longest] = CHECK_INTERVAL;
        loop {
            while !peer_finished {
                match try_discard(self.tcp()) {
                    Ok(0) => peer_finished = true,
                    Ok(_) => {
                        peer_sends = true;
                        consume_budget().await;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return,
                }
            }
            // Nothing can arrive any more, so that the kernel delivers the rest by itself.
            if peer_finished && !is_reset {
                return;
            }
            match unacknowledged(self.tcp()) {
                Ok(0) | Err(_) => return,
                Ok(left) if left < undelivered => {
                    (undelivered, progress) = (left, Instant::now());
                }
                Ok(_) if is_reset && progress.elapsed() > STALLED => return,
                Ok(_) if peer_sends && progress.elapsed() > UNREAD => return,
                Ok(_) => {}
            }
            if peer_finished {
                sleep(interval).await;
            } else {
                let _ = timeout(interval, self.tcp().readable()).await; // an error is read above
            }
            interval = (interval * 2).min(longest);
        }
    }
}

/// Reads and discards what has arrived, and returns how much; nothing is a half-close.
fn try_discard(tcp: &TcpStream) -> io::Result<usize> {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.reserve(WRITE_SIZE);
        let read = tcp.try_read_buf(&mut (&mut *buffer).limit(WRITE_SIZE));
        buffer.clear();
        read
    })
}
