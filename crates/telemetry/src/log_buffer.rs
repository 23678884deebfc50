//! Log lines on their way to standard output. Threads append them to a buffer, which a thread of
//! its own writes: the first line at once, those of the next milliseconds together. A write is
//! expensive, and a busy proxy closes thousands of connections a second.
//!
//! Lines stay in order, and none is lost when the process exits or aborts. If standard output is
//! read too slowly, lines beyond a limit are dropped and counted: logging never waits.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The time between two writes.
const INTERVAL: Duration = Duration::from_millis(20);
/// The number of bytes that are written without waiting for more.
const FULL: usize = 64 * 1024;
/// The maximum number of bytes that wait to be written.
const LIMIT: usize = 4 * 1024 * 1024;
/// How long the end of the process waits for standard output.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// Appends lines to the buffer. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogBuffer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when the thread has something to do before the interval ends.
    due: Condvar,
    /// Notified when lines were written.
    written: Condvar,
    /// Number of lines that were dropped.
    dropped: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines.
    lines: Vec<u8>,
    /// Whether lines are to be written before the interval ends.
    is_urgent: bool,
    /// Whether the thread is writing lines that are no longer in the buffer.
    is_writing: bool,
    /// Whether the thread ends once everything is written.
    is_closed: bool,
}

impl LogBuffer {
    /// Starts the thread that writes to `out`. It lives until the buffer is closed.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let buffer = Self::default();
        let shared = buffer.0.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || shared.write_to(out))?;
        Ok(buffer)
    }

    fn append(&self, line: &[u8], is_urgent: bool) {
        let mut state = self.0.state.lock();
        let (before, after) = (state.lines.len(), state.lines.len() + line.len());
        if after > LIMIT {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        state.is_urgent |= is_urgent || after >= FULL;
        if before == 0 || is_urgent || (before < FULL && after >= FULL) {
            self.0.due.notify_one();
        }
    }

    /// Number of lines that were dropped.
    pub(crate) fn dropped(&self) -> usize {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, but not for long if standard output is not read.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        let Some(mut state) = self.0.state.try_lock_until(deadline) else {
            return;
        };
        while !state.lines.is_empty() || state.is_writing {
            state.is_urgent = true;
            self.0.due.notify_one();
            if self.0.written.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    /// Writes everything, as [`LogBuffer::flush`], and ends the thread.
    pub(crate) fn close(&self) {
        self.flush();
        self.0.state.lock().is_closed = true;
        self.0.due.notify_one();
    }
}

impl Shared {
    fn write_to(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        let mut next = Instant::now();
        loop {
            let mut state = self.state.lock();
            state.is_writing = false;
            self.written.notify_all();
            while state.lines.is_empty() {
                if state.is_closed {
                    return;
                }
                self.due.wait(&mut state);
            }
            while !state.is_urgent && !state.is_closed {
                if self.due.wait_until(&mut state, next).timed_out() {
                    break;
                }
            }
            mem::swap(&mut batch, &mut state.lines);
            (state.is_urgent, state.is_writing) = (false, true);
            drop(state);
            // Standard output may be closed: then no one reads the log.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            batch.shrink_to(FULL);
            next = Instant::now() + INTERVAL;
        }
    }
}

/// A line that is appended when it is complete.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    buffer: &'a LogBuffer,
    is_urgent: bool,
}

impl Write for Line<'_> {
    /// Appends a whole line, as the formatter writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.buffer.append(line, self.is_urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogBuffer {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            buffer: self,
            is_urgent: false,
        }
    }

    /// Warnings and errors are written at once, except those of connections, of which there may be
    /// thousands.
    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line {
            buffer: self,
            is_urgent: *meta.level() <= Level::WARN && meta.target() != "access",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Passes every write on, and returns from it when the test signals.
    struct Output {
        written: Sender<String>,
        proceed: Receiver<()>,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            self.written.send(text).unwrap();
            let _ = self.proceed.recv(); // the test has ended
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn buffer() -> (LogBuffer, Receiver<String>, Sender<()>) {
        let ((written, writes), (go, proceed)) = (channel(), channel());
        let output = Output { written, proceed };
        (LogBuffer::start(output).unwrap(), writes, go)
    }

    #[test]
    fn a_line_is_written_at_once_and_those_during_a_write_together() {
        let (buffer, writes, go) = buffer();
        buffer.append(b"1\n", false);
        assert_eq!(writes.recv().unwrap(), "1\n");
        for line in 2..=1000 {
            buffer.append(format!("{line}\n").as_bytes(), line % 100 == 0);
        }
        go.send(()).unwrap();
        let expected: String = (2..=1000).map(|line| format!("{line}\n")).collect();
        assert_eq!(writes.recv().unwrap(), expected);
    }

    #[test]
    fn closing_waits_for_everything_that_was_logged() {
        let (buffer, writes, go) = buffer();
        drop(go); // writes return at once
        for line in 0..1000 {
            buffer.append(format!("{line}\n").as_bytes(), false);
        }
        buffer.close();
        let written: String = writes.try_iter().collect();
        assert_eq!(written.lines().count(), 1000);
        assert!(written.ends_with("999\n"));
    }

    #[test]
    fn lines_are_dropped_and_counted_while_the_output_is_not_read() {
        let (buffer, writes, go) = buffer();
        let line = vec![b'x'; 1 << 10];
        buffer.append(&line, false);
        writes.recv().unwrap();
        for _ in 0..LIMIT / line.len() + 7 {
            buffer.append(&line, false);
        }
        assert_eq!(buffer.dropped(), 7);
        buffer.flush(); // does not wait for ever
        drop(go);
        buffer.flush();
        assert_eq!(writes.try_iter().map(|w| w.len()).sum::<usize>(), LIMIT);
        buffer.append(b"again\n", true);
        buffer.flush();
        assert_eq!(writes.recv().unwrap(), "again\n");
    }
}
