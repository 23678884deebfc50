//! The copy loop.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::StreamEnd;
use crate::chunks::Chunks;
use crate::last_answer::{EndRule, HeldByte, LastAnswer, Server};
use crate::splice::{Moved, move_bulk};
use crate::turn::Turn;

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
    /// The source has answered, and the connection is to end with that.
    Answered,
}

/// How a connection ended.
enum Ended {
    /// Both sides have finished.
    Both,
    /// One of them has ended as a whole, and the other was closed accordingly.
    One(StreamEnd),
    /// The server has answered, and neither side is closed yet.
    Answered,
}

/// Copies in both directions until both sides have finished, `Ok(None)`, or one has ended and the
/// other was closed accordingly, `Ok(Some(end))`; until `last` ends the connection in order; or
/// until `closed` completes, when both are reset.
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
    last: LastAnswer<'_>,
    closed: impl Future<Output = E>,
) -> Result<Option<StreamEnd>, E> {
    let closed = tokio::select! {
        ended = until_ended(a, b, record_up, record_down, last) => match ended {
            Ended::Both => return Ok(None),
            Ended::One(end) => return Ok(Some(end)),
            Ended::Answered => None,
        },
        reason = closed => Some(reason),
    };
    a.source.discard();
    b.source.discard();
    match closed {
        None => {
            let end = StreamEnd::Finished;
            tokio::join!(a.sink.close(&end), b.sink.close(&end));
            Ok(Some(end))
        }
        Some(reason) => {
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
    mut last: LastAnswer<'_>,
) -> Ended {
    let (up_progress, down_progress) = (Progress::default(), Progress::default());
    let mut never = pin!(pending());
    let of_client: EndRule<'_, '_> = (&|| None, never.as_mut());
    let of_server: EndRule<'_, '_> = (last.silence, last.idle.as_mut());
    let (of_a, of_b) = match last.server {
        Server::A => (of_server, of_client),
        Server::B => (of_client, of_server),
    };
    let (a_ended, end, is_stalled) = {
        let up = copy(
            &mut a.source,
            &mut b.sink,
            &up_progress,
            &down_progress,
            record_up,
            of_a,
        );
        let down = copy(
            &mut b.source,
            &mut a.sink,
            &down_progress,
            &up_progress,
            record_down,
            of_b,
        );
        tokio::pin!(up, down);
        let (stop, is_up) = tokio::select! {
            stop = &mut up => (stop, true),
            stop = &mut down => (stop, false),
        };
        match (stop, is_up) {
            (Stop::BothFinished, _) => return Ended::Both,
            (Stop::Answered, _) => return Ended::Answered,
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
    Ended::One(end)
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

/// What a future returns without waiting; `None` if it would wait.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Writes and counts bytes that were read from a source.
async fn pass_on(
    source: &mut impl Source,
    sink: &mut impl Sink,
    this: &Progress,
    record: impl Fn(usize),
    mut bytes: Chunks,
) -> Result<(), StreamEnd> {
    let length = bytes.len();
    while !bytes.is_empty() {
        match at_once(sink.write(&mut bytes)).await {
            Some(written) => written?,
            None => {
                source.keep(&mut bytes);
                tokio::select! {
                    biased;
                    written = sink.write(&mut bytes) => written?,
                    never = source.fill() => match never {},
                }
            }
        }
        this.count_write();
    }
    source.reclaim(bytes);
    record(length);
    source.release(length);
    Ok(())
}

/// What a direction waits for.
enum Next {
    Read(Result<Option<Chunks>, StreamEnd>),
    SinkEnded(StreamEnd),
    /// Nothing, for as long as the held byte waits.
    Silent,
    Idle,
}

/// Waits for the source, and meanwhile for the end of the sink or of the connection.
async fn next(
    source: &mut impl Source,
    sink: &mut impl Sink,
    size: usize,
    held: Option<&HeldByte>,
    mut idle: Pin<&mut (dyn Future<Output = ()> + '_)>,
) -> Next {
    let silent = async {
        match held {
            Some(held) => sleep(held.silence).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        read = source.read(size) => Next::Read(read),
        end = sink.ended() => Next::SinkEnded(end),
        () = silent => Next::Silent,
        () = idle.as_mut(), if held.is_none() => Next::Idle,
    }
}

/// Copies one direction until it finishes, and then watches the sink until both have finished.
async fn copy(
    source: &mut impl Source,
    sink: &mut impl Sink,
    this: &Progress,
    other: &Progress,
    record: impl Fn(usize),
    (silence, mut idle): EndRule<'_, '_>,
) -> Stop {
    let mut turn = Turn::default();
    let size = sink.write_size();
    let mut full_reads = 0;
    let (mut held, mut is_duplex) = (None::<HeldByte>, false);
    loop {
        let next = next(source, sink, size, held.as_ref(), idle.as_mut()).await;
        let mut bytes = Chunks::default();
        let answered = held.take().is_some_and(|held| {
            bytes.push(held.byte);
            is_duplex |= other.writes.get() != held.writes;
            matches!(next, Next::Silent) && !is_duplex
        });
        let end = match next {
            Next::SinkEnded(end) => return Stop::Sink(end),
            Next::Idle => return Stop::Answered,
            Next::Silent => None,
            Next::Read(Ok(Some(read))) => {
                bytes.append(read);
                None
            }
            Next::Read(Ok(None)) => Some(Ok(())),
            Next::Read(Err(end)) => Some(Err(end)),
        };
        if end.is_none() && !answered && !is_duplex {
            held = HeldByte::take(&mut bytes, silence(), other.writes.get());
        }
        let length = bytes.len();
        if !bytes.is_empty()
            && let Err(end) = pass_on(source, sink, this, &record, bytes).await
        {
            return Stop::Sink(end);
        }
        match end {
            Some(Ok(())) => break,
            Some(Err(end)) => return Stop::Source(end),
            None if answered => return Stop::Answered,
            None => {}
        }
        if turn.is_over(length) {
            yield_now().await;
        }
        full_reads = if length >= size { full_reads + 1 } else { 0 };
        if full_reads >= FULL_READS && held.is_none() {
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
    fn never() -> impl Future<Output = ()> {
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
                let mut idle = pin!(pending());
                let last = LastAnswer::never(idle.as_mut());
                let relaying = relay(&mut a, &mut b, |_| {}, |_| {}, last, never());
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
        let mut idle = pin!(pending());
        let last = LastAnswer::never(idle.as_mut());
        let relayed = relay(&mut a, &mut b, record_up, record_down, last, never()).await;
        assert!(matches!(relayed, Ok(None)));
        assert_eq!((up.get(), down.get()), (15, 25));
    }
}
