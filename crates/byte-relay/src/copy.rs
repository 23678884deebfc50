//! The copy loop.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::StreamEnd;
use crate::chunks::Chunks;
use crate::splice::{Moved, move_bulk};

/// How long a side may accept nothing of what precedes a reset. An orderly end waits for as long as
/// the side takes.
pub const STALLED: Duration = Duration::from_secs(5);

/// How many reads in a row must fill their buffer before bulk data is moved instead of copied.
const FULL_READS: usize = 2;

/// Where the bytes of one direction come from.
#[expect(async_fn_in_trait, reason = "a connection stays on its thread")]
pub trait Source {
    /// Reads the next bytes, which are never empty; `None` at a half-close. A socket is read up to
    /// `size` bytes at a time. May be cancelled. Fails with the end of the side, after all bytes
    /// before it.
    async fn read(&mut self, size: usize) -> Result<Option<Chunks>, StreamEnd>;

    /// What was read last must wait until the sink accepts it. It may be parts of larger blocks.
    fn keep(&mut self, _bytes: &mut Chunks) {}

    /// Takes back what was read last, all of which is written, to use its memory again.
    fn reclaim(&mut self, _written: Chunks) {}

    /// Receives in the meantime what cannot wait; never completes.
    async fn fill(&mut self) -> Infallible {
        pending().await
    }

    /// Frees what was received and not passed on: the connection is being closed.
    fn discard(&mut self) {}

    /// Takes note that bytes have been passed on.
    fn release(&mut self, _bytes: usize) {}

    /// The socket from which the bytes can be moved as well.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// Where the bytes of one direction go.
#[expect(async_fn_in_trait, reason = "a connection stays on its thread")]
pub trait Sink {
    /// The number of bytes that the side transmits best at once.
    fn write_size(&self) -> usize;

    /// Writes and removes the first of the bytes, as many as the side accepts, at least one. May be
    /// cancelled. Fails with the end of the side.
    async fn write(&mut self, bytes: &mut Chunks) -> Result<(), StreamEnd>;

    /// The socket to which bytes can be moved as well.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// Half-closes the side. Its end, if there is one, is reported by [`Sink::ended`].
    fn finish(&mut self);

    /// Completes when the side has ended as a whole, also after a half-close. May be cancelled.
    async fn ended(&mut self) -> StreamEnd;

    /// Ends the side as the other one has ended, after what was written is delivered.
    async fn close(&mut self, end: &StreamEnd);

    /// Resets the side without waiting for what is not sent yet.
    async fn reset(&mut self);
}

/// One side of a connection.
pub struct Side<R, W> {
    /// What it sends.
    pub source: R,
    /// What is sent to it.
    pub sink: W,
}

/// The state of one direction, which the other one sees.
#[derive(Default)]
pub(crate) struct Progress {
    /// Number of writes in which the sink accepted bytes.
    writes: Cell<u64>,
    /// Whether the source has half-closed, and the sink was half-closed.
    is_finished: Cell<bool>,
    /// Whether the source's side is known to have ended.
    has_ended: Cell<bool>,
}

impl Progress {
    /// Counts a write in which the sink accepted bytes.
    pub(crate) fn count_write(&self) {
        self.writes.set(self.writes.get() + 1);
    }
}

/// Why a direction stops.
pub(crate) enum Stop {
    /// Both directions have finished, or nothing is left of a side that has ended.
    BothFinished,
    /// The side of the source ended, and everything before is written.
    Source(StreamEnd),
    /// The side of the sink ended.
    Sink(StreamEnd),
}

/// Copies in both directions until both sides have finished, `Ok(None)`, or one has ended and the
/// other was closed accordingly, `Ok(Some(end))`; or until `closed` completes, when both are
/// finished, or with an error reset.
/// `record_up` is called with the number of bytes from `a` that `b` has accepted, `record_down` in
/// the other direction.
///
/// # Errors
/// That of `closed`.
pub async fn relay<E>(
    a: &mut Side<impl Source, impl Sink>,
    b: &mut Side<impl Source, impl Sink>,
    record_up: impl Fn(usize),
    record_down: impl Fn(usize),
    closed: impl Future<Output = Result<(), E>>,
) -> Result<Option<StreamEnd>, E> {
    let closed = tokio::select! {
        end = until_ended(a, b, record_up, record_down) => return Ok(end),
        closed = closed => closed,
    };
    a.source.discard();
    b.source.discard();
    match closed {
        Ok(()) => {
            let end = StreamEnd::Finished;
            tokio::join!(a.sink.close(&end), b.sink.close(&end));
            Ok(Some(end))
        }
        Err(reason) => {
            tokio::join!(a.sink.reset(), b.sink.reset());
            Err(reason)
        }
    }
}

async fn until_ended(
    a: &mut Side<impl Source, impl Sink>,
    b: &mut Side<impl Source, impl Sink>,
    record_up: impl Fn(usize),
    record_down: impl Fn(usize),
) -> Option<StreamEnd> {
    let (up_progress, down_progress) = (Progress::default(), Progress::default());
    let (a_ended, end, is_stalled) = {
        let up = copy(
            &mut a.source,
            &mut b.sink,
            &up_progress,
            &down_progress,
            record_up,
        );
        let down = copy(
            &mut b.source,
            &mut a.sink,
            &down_progress,
            &up_progress,
            record_down,
        );
        tokio::pin!(up, down);
        let (stop, is_up) = tokio::select! {
            stop = &mut up => (stop, true),
            stop = &mut down => (stop, false),
        };
        match (stop, is_up) {
            (Stop::BothFinished, _) => return None,
            (Stop::Source(end), is_up) => (is_up, end, false),
            (Stop::Sink(end), true) => {
                let (end, is_stalled) = deliver_rest(down, &down_progress, end).await;
                (false, end, is_stalled)
            }
            (Stop::Sink(end), false) => {
                let (end, is_stalled) = deliver_rest(up, &up_progress, end).await;
                (true, end, is_stalled)
            }
        }
    };
    match (a_ended, is_stalled) {
        (true, false) => b.sink.close(&end).await,
        (true, true) => b.sink.reset().await,
        (false, false) => a.sink.close(&end).await,
        (false, true) => a.sink.reset().await,
    }
    Some(end)
}

/// Copies what the side of a source sent before its end, as long as the other side accepts it.
/// Returns the end as the source reports it, or else as it was noticed before, and whether the
/// other side has stopped accepting.
async fn deliver_rest(
    mut copying: Pin<&mut impl Future<Output = Stop>>,
    progress: &Progress,
    end: StreamEnd,
) -> (StreamEnd, bool) {
    let is_reset = matches!(end, StreamEnd::Reset(_));
    progress.has_ended.set(true);
    while !progress.is_finished.get() {
        let before = progress.writes.get();
        match timeout(STALLED, copying.as_mut()).await {
            Ok(Stop::Source(reported)) => return (reported, false),
            Ok(_) => return (end, false),
            Err(_) if is_reset && progress.writes.get() == before => return (end, true),
            Err(_) => {}
        }
    }
    (end, false)
}

/// What one direction has copied since other connections had their turn. A socket never waits by
/// itself while it is ready. tokio's budget does not suffice: a task that has spent it is run again
/// before new events are read, up to 61 times.
#[derive(Default)]
pub(crate) struct Turn {
    chunks: usize,
    bytes: usize,
}

impl Turn {
    /// Limits of what is copied in a turn: well below a millisecond of work.
    const CHUNKS: usize = 32;
    pub(crate) const BYTES: usize = 512 * 1024;

    /// Counts a chunk; true, and a new turn, if enough was copied.
    pub(crate) fn is_over(&mut self, bytes: usize) -> bool {
        self.chunks += 1;
        self.bytes += bytes;
        let is_over = self.chunks >= Self::CHUNKS || self.bytes >= Self::BYTES;
        if is_over {
            *self = Self::default();
        }
        is_over
    }
}

/// What a future returns without waiting; `None` if it would wait.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Copies one direction until it finishes, and then watches the sink until both have finished.
async fn copy(
    source: &mut impl Source,
    sink: &mut impl Sink,
    this: &Progress,
    other: &Progress,
    record: impl Fn(usize),
) -> Stop {
    let mut turn = Turn::default();
    let size = sink.write_size();
    let mut full_reads = 0;
    loop {
        let read = tokio::select! {
            biased;
            read = source.read(size) => read,
            end = sink.ended() => return Stop::Sink(end),
        };
        let mut bytes = match read {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(end) => return Stop::Source(end),
        };
        let length = bytes.len();
        while !bytes.is_empty() {
            let written = match at_once(sink.write(&mut bytes)).await {
                Some(written) => written,
                None => {
                    source.keep(&mut bytes);
                    tokio::select! {
                        biased;
                        written = sink.write(&mut bytes) => written,
                        never = source.fill() => match never {},
                    }
                }
            };
            if let Err(end) = written {
                return Stop::Sink(end);
            }
            this.count_write();
        }
        source.reclaim(bytes);
        record(length);
        source.release(length);
        if turn.is_over(length) {
            yield_now().await;
        }
        full_reads = if length >= size { full_reads + 1 } else { 0 };
        if full_reads >= FULL_READS {
            full_reads = 0;
            match move_bulk(source, sink, this, &record, &mut turn).await {
                Moved::Small => {}
                Moved::Finished => break,
                Moved::Stop(stop) => return stop,
            }
        }
    }
    if this.has_ended.get() {
        return Stop::BothFinished; // not a half-close: the error was reported elsewhere
    }
    sink.finish();
    this.is_finished.set(true);
    if other.is_finished.get() {
        return Stop::BothFinished;
    }
    Stop::Sink(sink.ended().await)
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes};

    use super::*;

    /// Closes no connection.
    fn never() -> impl Future<Output = Result<(), ()>> {
        pending()
    }

    /// A side that sends a number of chunks of a size and accepts everything, always at once, as
    /// fast sockets do.
    struct AlwaysReady(Cell<usize>, usize);

    impl Source for AlwaysReady {
        async fn read(&mut self, _: usize) -> Result<Option<Chunks>, StreamEnd> {
            let left = self.0.get();
            self.0.set(left.saturating_sub(1));
            Ok((left > 0).then(|| Bytes::from(vec![0; self.1]).into()))
        }
    }

    impl Sink for AlwaysReady {
        fn write_size(&self) -> usize {
            self.1
        }

        async fn write(&mut self, bytes: &mut Chunks) -> Result<(), StreamEnd> {
            bytes.advance(bytes.len());
            Ok(())
        }

        fn finish(&mut self) {}

        async fn ended(&mut self) -> StreamEnd {
            pending().await
        }

        async fn close(&mut self, _: &StreamEnd) {}

        async fn reset(&mut self) {}
    }

    fn side(chunks: usize, size: usize) -> Side<AlwaysReady, AlwaysReady> {
        let always_ready = |chunks| AlwaysReady(Cell::new(chunks), size);
        Side {
            source: always_ready(chunks),
            sink: always_ready(0),
        }
    }

    #[tokio::test]
    async fn copying_between_sides_that_never_wait_yields() {
        const CHUNKS: usize = 3200;
        for (up, down) in [(CHUNKS, 0), (0, CHUNKS), (CHUNKS, CHUNKS)] {
            for (size, turns) in [(1, CHUNKS / Turn::CHUNKS), (Turn::BYTES / 8, CHUNKS / 8)] {
                let (mut a, mut b) = (side(up, size), side(down, size));
                let relaying = relay(&mut a, &mut b, |_| {}, |_| {}, never());
                tokio::pin!(relaying);
                let mut polls = 0;
                let counted = poll_fn(|cx| {
                    polls += 1;
                    relaying.as_mut().poll(cx)
                });
                assert!(matches!(counted.await, Ok(None)));
                assert!(polls >= turns, "{polls} turns for chunks of {size}");
            }
        }
    }

    #[tokio::test]
    async fn both_directions_pass_everything_on() {
        let (mut a, mut b) = (side(3, 5), side(5, 5));
        let (up, down) = (Cell::new(0), Cell::new(0));
        let add = |to: &Cell<usize>, n: usize| to.set(to.get() + n);
        let (record_up, record_down) = (|n| add(&up, n), |n| add(&down, n));
        let relayed = relay(&mut a, &mut b, record_up, record_down, never()).await;
        assert!(matches!(relayed, Ok(None)));
        assert_eq!((up.get(), down.get()), (15, 25));
    }
}
