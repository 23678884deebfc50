//! Turns of pods on a worker: however many of a pod's connections are busy, they work for a limited
//! time before the worker looks for events of others.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// How long the connections of a pod work in a turn, all together, plus the time until the last one
/// yields. Shorter turns would split what is sent at once.
const TURN: Duration = Duration::from_millis(1);

/// The turns of one pod on each worker.
pub(super) struct Turns(Vec<Turn>);

/// The current turn of a pod on one worker, which alone uses it.
struct Turn {
    /// The time that was used, in nanoseconds.
    used: AtomicU64,
    /// Its permit belongs to the connection that works next. Others wait in order.
    next: Semaphore,
}

impl Turns {
    pub(super) fn new(workers: usize) -> Self {
        let turn = |_| Turn {
            used: AtomicU64::new(0),
            next: Semaphore::new(1),
        };
        Self((0..workers).map(turn).collect())
    }

    /// Completes with the `work` of a connection, which is polled on this worker, in turn with the
    /// other connections of the pod.
    pub(super) async fn take<F: Future>(&self, worker: usize, mut work: Pin<&mut F>) -> F::Output {
        let turn = &self.0[worker];
        let mut is_next = false;
        loop {
            let worked = poll_fn(|cx| {
                if !is_next && turn.must_wait() {
                    return Poll::Ready(None);
                }
                is_next = false;
                let begun = Instant::now();
                let polled = work.as_mut().poll(cx);
                turn.use_up(begun.elapsed());
                polled.map(Some)
            });
            if let Some(output) = worked.await {
                return output;
            }
            turn.wait().await;
            is_next = true;
        }
    }
}

impl Turn {
    /// Whether the turn is used up, or other connections wait for it.
    fn must_wait(&self) -> bool {
        self.is_used_up() || self.next.available_permits() == 0
    }

    fn is_used_up(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= nanoseconds(TURN)
    }

    fn use_up(&self, time: Duration) {
        self.used.fetch_add(nanoseconds(time), Ordering::Relaxed);
    }

    /// Waits for those that came before, and if the turn is used up by then, until the worker has
    /// looked for events. The next turn begins with the connection that has waited.
    async fn wait(&self) {
        let _permit = self.next.acquire().await; // the semaphore is never closed
        if self.is_used_up() {
            yield_now().await;
            self.used.store(0, Ordering::Relaxed);
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::Waker;

    use tokio::task::spawn_local;

    use super::*;

    /// A connection that always has work, and works for at least this long whenever it is polled.
    async fn work_hard(polls: &Cell<usize>, time: Duration) {
        poll_fn(|cx| {
            polls.set(polls.get() + 1);
            let begun = Instant::now();
            while begun.elapsed() < time {}
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })
        .await;
    }

    #[test]
    fn many_busy_connections_of_a_pod_have_one_turn_between_events_and_equal_ones() {
        for polls_in_a_turn in [1, 4] {
            share_turns(polls_in_a_turn);
        }
    }

    fn share_turns(polls_in_a_turn: usize) {
        const CONNECTIONS: usize = 50;
        let time = TURN / u32::try_from(polls_in_a_turn).unwrap();
        let turns = Rc::new(Turns::new(1));
        let polls = Rc::new([(); CONNECTIONS].map(|()| Cell::new(0)));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build_local(Default::default())
            .unwrap();
        let most = runtime.block_on(async {
            for index in 0..CONNECTIONS {
                let (turns, polls) = (turns.clone(), polls.clone());
                spawn_local(async move {
                    turns.take(0, pin!(work_hard(&polls[index], time))).await;
                });
            }
            let mut most = 0;
            for _ in 0..4 * CONNECTIONS {
                let count = || polls.iter().map(Cell::get).sum::<usize>();
                let before = count();
                yield_now().await; // until the worker has looked for events
                most = most.max(count() - before);
            }
            most
        });
        assert!(most <= polls_in_a_turn + 1, "{most} polls between events");
        let of_each = || polls.iter().map(Cell::get);
        let (least, most) = (of_each().min().unwrap(), of_each().max().unwrap());
        assert!(
            least > 0 && most - least <= 1,
            "{least} to {most} polls each"
        );
    }

    #[tokio::test]
    async fn a_turn_that_is_not_used_up_delays_no_connection() {
        let turns = Turns::new(2);
        turns.0[0].use_up(TURN);
        let mut context = std::task::Context::from_waker(Waker::noop());
        for (worker, is_ready) in [(1, true), (0, false)] {
            let mut work = pin!(async { 7 });
            let mut taken = pin!(turns.take(worker, work.as_mut()));
            let polled = taken.as_mut().poll(&mut context);
            assert_eq!(
                polled,
                if is_ready {
                    Poll::Ready(7)
                } else {
                    Poll::Pending
                }
            );
            if !is_ready {
                assert_eq!(taken.await, 7);
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_while_it_waits_gives_its_place_to_the_next() {
        let turns = Turns::new(1);
        turns.0[0].use_up(TURN);
        let mut context = std::task::Context::from_waker(Waker::noop());
        {
            let mut work = pin!(pending::<()>());
            let mut ends = pin!(turns.take(0, work.as_mut()));
            assert!(ends.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(turns.take(0, pin!(async { 7 })).await, 7);
    }
}
