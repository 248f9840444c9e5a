//! Slowing down when the store asks for it, all requests together.
//!
//! Each request that is refused with "slow down" is tried again on its own, after a random while. If that were
//! all, a thousand of them would go on at the pace that the store could not bear. So every request passes
//! through one [`Pace`], which spreads them out once one was refused, and speeds up again bit by bit.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long the rate of requests is measured, and how soon after one change the next may follow: what was under
/// way says nothing about a change that came after it.
const SPAN: Duration = Duration::from_secs(1);

/// The longest gap between two requests. Small things that come one at a time get through even so.
const WIDEST: Duration = Duration::from_millis(250);

/// The longest that a request waits for its turn. What has to wait longer is better refused by the store, as
/// whoever asked is then told so.
const LONGEST: Duration = Duration::from_secs(5);

/// A gap that is no longer worth keeping.
const NARROWEST: Duration = Duration::from_micros(500);

/// The gap between one request and the next; none while the store has no complaint.
#[derive(Clone, Debug)]
pub(super) struct Pace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    gap: Duration,
    /// When the next request may go.
    next: Instant,
    /// When the gap was last made wider.
    widened: Instant,
    /// When the store last complained, or since then the gap was last made narrower.
    calm: Instant,
    /// When the present count began, how many requests it has, and how many the one before had.
    counting: Instant,
    count: u32,
    before: u32,
}

impl Default for Pace {
    fn default() -> Self {
        let now = Instant::now();
        let state =
            State { gap: Duration::ZERO, next: now, widened: now, calm: now, counting: now, count: 0, before: 0 };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl Pace {
    /// Waits for this request's turn.
    pub(super) async fn turn(&self) {
        let turn = self.state().draw(Instant::now());
        if let Some(turn) = turn {
            tokio::time::sleep_until(turn).await;
        }
    }

    /// Takes in that the store refused a request because there are too many.
    pub(super) fn slow_down(&self) {
        self.state().widen(Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When a request that comes now may go; `None` for at once.
    fn draw(&mut self, now: Instant) -> Option<Instant> {
        if now >= self.counting + SPAN {
            let is_next = now < self.counting + SPAN * 2;
            self.before = if is_next { self.count } else { 0 };
            (self.counting, self.count) = (now, 0);
        }
        self.count += 1;
        while !self.gap.is_zero() && now >= self.calm + SPAN {
            self.calm += SPAN;
            self.gap = self.gap.mul_f64(0.7);
            if self.gap < NARROWEST {
                self.gap = Duration::ZERO;
            }
        }
        if self.gap.is_zero() {
            return None;
        }
        let turn = self.next.clamp(now, now + LONGEST);
        self.next = turn + self.gap;
        Some(turn)
    }

    /// Two thirds of the rate that was too much.
    fn widen(&mut self, now: Instant) {
        self.calm = now;
        if !self.gap.is_zero() && now < self.widened + SPAN {
            return;
        }
        let measured = SPAN / self.count.max(self.before).max(1);
        self.gap = self.gap.max(measured).mul_f64(1.5).min(WIDEST);
        self.widened = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long `count` requests take to get their turns.
    async fn spread(pace: &Pace, count: usize) -> Duration {
        let begun = Instant::now();
        for _ in 0..count {
            pace.turn().await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_complains_gets_two_thirds_of_what_was_too_much_and_then_more_again() {
        let pace = Pace::default();
        assert_eq!(spread(&pace, 600).await, Duration::ZERO, "without a complaint nothing waits");
        (0..100).for_each(|_| pace.slow_down());
        let slowed = spread(&pace, 400).await;
        assert!((900..1100).contains(&slowed.as_millis()), "600 a second became 400: {slowed:?}");
        tokio::time::sleep(SPAN).await;
        pace.slow_down();
        let slower = spread(&pace, 200).await;
        assert!(slower.as_millis() > 700, "a second complaint slows further: {slower:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(spread(&pace, 600).await, Duration::ZERO, "it is forgotten");
    }

    /// As slow as it gets.
    async fn slowest() -> Pace {
        let pace = Pace::default();
        for _ in 0..50 {
            pace.turn().await;
            pace.slow_down();
            tokio::time::sleep(SPAN).await;
        }
        pace
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_never_waits_long() {
        assert!(spread(&slowest().await, 2).await <= WIDEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_waits_for_so_long_and_no_longer() {
        let (pace, begun) = (slowest().await, Instant::now());
        futures_util::future::join_all((0..1000).map(|_| pace.turn())).await;
        assert!((LONGEST..LONGEST + WIDEST * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert!(spread(&pace, 1).await <= LONGEST + WIDEST, "nor does who comes after it");
    }
}
