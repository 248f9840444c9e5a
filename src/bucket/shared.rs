//! One question for all who ask the same.
//!
//! A request may share the answer to a question that was put after it came, never one that was put before: what
//! changed in between, and was acknowledged to somebody, would be missing in it. So those share who wait for
//! the question's turn, and who comes once it is being put waits for the next one.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OnceCell, Semaphore};

use crate::error::{Error, Result};

/// How many different questions may wait for their turn; then the bucket is too slow for what is asked, and
/// more of them would only wait longer.
const MAX_WAITING: usize = 256;

/// Questions of one kind, by what they are about.
pub(crate) struct Shared<T> {
    /// Those that wait for their turn.
    waiting: Mutex<HashMap<String, Arc<Round<T>>>>,
}

/// One question, and its answer for all who wait for it. It may be put by another of them if the first who
/// puts it goes away.
type Round<T> = OnceCell<Result<T>>;

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl<T: Clone> Shared<T> {
    /// Asks `about` something, by `look` or by somebody else's who asked the same, once `turns` has a permit.
    ///
    /// # Errors
    /// Those of `look`; `Unavailable` where too many questions wait already.
    pub(crate) async fn ask(
        &self,
        turns: &Semaphore,
        about: String,
        look: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let place = self.take_place(about)?;
        let put = async || {
            let _turn = turns.acquire().await.map_err(Error::internal)?;
            place.leave_queue();
            look.await
        };
        place.round.get_or_init(put).await.clone()
    }

    fn take_place(&self, about: String) -> Result<Place<'_, T>> {
        let mut waiting = self.waiting();
        let is_full = waiting.len() >= MAX_WAITING;
        let round = match waiting.get(&about) {
            Some(round) => Arc::clone(round),
            None if is_full => return Err(Error::unavailable("too many questions wait for the bucket")),
            None => Arc::clone(waiting.entry(about.clone()).or_default()),
        };
        drop(waiting);
        Ok(Place { shared: self, about, round })
    }

    // No code panics while it holds the lock.
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Arc<Round<T>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's place in a round.
struct Place<'a, T: Clone> {
    shared: &'a Shared<T>,
    about: String,
    round: Arc<Round<T>>,
}

impl<T: Clone> Place<'_, T> {
    /// From here on nobody joins this round.
    fn leave_queue(&self) {
        let mut waiting = self.shared.waiting();
        if waiting.get(&self.about).is_some_and(|round| Arc::ptr_eq(round, &self.round)) {
            waiting.remove(&self.about);
        }
    }
}

/// A request that goes away may be the last one that waited for its round.
impl<T: Clone> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        let is_last = waiting
            .get(&self.about)
            .is_some_and(|round| Arc::ptr_eq(round, &self.round) && Arc::strong_count(round) == 2);
        if is_last {
            waiting.remove(&self.about);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Asks whose answer is how many were put before.
    async fn ask(shared: &Shared<usize>, turns: &Semaphore, puts: &AtomicUsize) -> Result<usize> {
        let look = async {
            let before = puts.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(before)
        };
        shared.ask(turns, "x".to_owned(), look).await
    }

    #[tokio::test]
    async fn who_waits_shares_and_who_comes_later_asks_anew() {
        let (shared, turns, puts) = (Shared::default(), Semaphore::new(1), AtomicUsize::new(0));
        let busy = turns.acquire().await.expect("a permit");
        let together = futures_util::future::join_all((0..5).map(|_| ask(&shared, &turns, &puts)));
        let release = async {
            tokio::task::yield_now().await;
            drop(busy);
        };
        let (answers, ()) = tokio::join!(together, release);
        assert!(answers.into_iter().all(|answer| answer.expect("an answer") == 0));
        assert_eq!(ask(&shared, &turns, &puts).await.expect("an answer"), 1);
        // With a free turn a question is put at once, so the next one is another.
        let (one, two) = tokio::join!(ask(&shared, &turns, &puts), ask(&shared, &turns, &puts));
        assert_eq!((one.expect("an answer"), two.expect("an answer")), (2, 3));
        assert!(shared.waiting().is_empty());
    }

    #[tokio::test]
    async fn who_goes_away_leaves_nothing_and_too_many_are_refused() {
        let (shared, turns) = (Shared::<usize>::default(), Semaphore::new(0));
        let mut asked: Vec<_> =
            (0..MAX_WAITING).map(|n| Box::pin(shared.ask(&turns, n.to_string(), async { Ok(1) }))).collect();
        for question in &mut asked {
            assert!(futures_util::poll!(question).is_pending());
        }
        let refused = shared.ask(&turns, "one more".to_owned(), async { Ok(1) }).await;
        assert_eq!(refused.expect_err("refused").code, crate::error::Code::Unavailable);
        let mut joined = Box::pin(shared.ask(&turns, "7".to_owned(), async { Ok(2) }));
        assert!(futures_util::poll!(&mut joined).is_pending());
        // The one who would have put the question goes; who joined puts it in its place.
        asked.clear();
        turns.add_permits(1);
        assert_eq!(joined.await.expect("an answer"), 2);
        assert!(shared.waiting().is_empty());
    }
}
