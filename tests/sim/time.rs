//! Time as it passes in a run: only when everybody waits, and then to the next moment that somebody waits for.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dunlin_agent::ground::{Later, Timer};
use dunlin_model::Timestamp;
use dunlin_pki::Clock;

/// When a run begins, ms since 1970.
const BEGIN_MS: u64 = 1_000_000_000;
/// Rounds in which those who have woken up wake others, before time passes again.
const ROUNDS: u32 = 4;

#[derive(Debug, Default)]
struct Inner {
    now_ms: u64,
    /// Who waits, by the moment and by who came first.
    waiting: BTreeMap<(u64, u64), Waker>,
    came: u64,
}

/// True time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Time(Arc<Mutex<Inner>>);

impl Time {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        BEGIN_MS + self.lock().now_ms
    }

    /// Lets so much time pass, and everybody do what he waits for when its moment comes.
    pub(crate) async fn pass(&self, ms: u64) {
        let until = self.lock().now_ms + ms;
        loop {
            for _ in 0..ROUNDS {
                tokio::task::yield_now().await;
            }
            let mut inner = self.lock();
            let next = inner.waiting.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= until);
            let Some(next) = next else {
                inner.now_ms = until;
                return;
            };
            inner.now_ms = inner.now_ms.max(next);
            let woken = inner.waiting.pop_first();
            // Unlocked first: what is dropped with a waker may be waiting itself.
            drop(inner);
            if let Some((_, waker)) = woken {
                waker.wake();
            }
        }
    }
}

impl Timer for Time {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.lock().now_ms)
    }

    fn sleep(&self, time: Duration) -> Later {
        let ms = u64::try_from(time.as_millis()).expect("nobody waits that long");
        let at = self.lock().now_ms.saturating_add(ms);
        Box::pin(Sleep { time: self.clone(), at, place: None })
    }
}

struct Sleep {
    time: Time,
    at: u64,
    place: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut inner = time.lock();
        if inner.now_ms >= self.at {
            return Poll::Ready(());
        }
        let place = *self.place.get_or_insert_with(|| {
            inner.came += 1;
            inner.came
        });
        inner.waiting.insert((self.at, place), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let waker = self.time.lock().waiting.remove(&(self.at, place));
            drop(waker);
        }
    }
}

/// A machine's clock: wrong by so much.
#[derive(Clone, Debug)]
pub(crate) struct Skewed {
    time: Time,
    by_ms: Arc<AtomicI64>,
}

impl Skewed {
    pub(crate) fn new(time: Time) -> Self {
        Self { time, by_ms: Arc::default() }
    }

    pub(crate) fn set_ms(&self, by_ms: i64) {
        self.by_ms.store(by_ms, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.time.now_ms().saturating_add_signed(self.by_ms.load(Ordering::Relaxed)))
    }

    pub(crate) fn clock(&self) -> Clock {
        let own = self.clone();
        Clock::new(move || own.now())
    }
}
