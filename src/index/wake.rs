//! Who waits for what inside this process, for both kinds of index.
//!
//! A topic takes memory only while somebody waits on it. Nothing is kept for those who come later: a
//! notification that nobody waits for is lost, as [`Index::notify`](super::Index::notify) allows.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// The waiters of one index, by topic.
#[derive(Debug, Default)]
pub(super) struct Topics(Mutex<HashMap<String, Arc<Notify>>>);

/// One waiter's place in [`Topics`]; the topic's entry goes with the last of them, also where the wait was
/// dropped halfway.
struct Waiter<'a> {
    topics: &'a Topics,
    topic: &'a str,
    bell: Arc<Notify>,
}

impl Topics {
    /// Wakes whoever waits on `topic` at this moment.
    pub(super) fn notify(&self, topic: &str) {
        if let Some(bell) = self.lock().get(topic) {
            bell.notify_waiters();
        }
    }

    /// Returns at a [`Topics::notify`] of `topic` that comes after the call's first poll, or at the end of
    /// `patience`.
    pub(super) async fn wait(&self, topic: &str, patience: Duration) {
        let bell = Arc::clone(self.lock().entry(topic.to_owned()).or_default());
        let waiter = Waiter { topics: self, topic, bell };
        // A future of `notified` hears what comes after it was made, polled or not. That the patience ran
        // out is no error: the caller looks for work either way.
        let _ = tokio::time::timeout(patience, waiter.bell.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut topics = self.topics.lock();
        // Two: the table's and ours. New ones are made under the lock that we hold.
        if Arc::strong_count(&self.bell) == 2 {
            topics.remove(self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_entry_vanishes_with_its_last_waiter() {
        let topics = Topics::default();
        {
            let first = topics.wait("events", Duration::from_secs(1));
            let second = topics.wait("events", Duration::from_secs(2));
            tokio::join!(first, second);
        }
        assert!(topics.lock().is_empty());
        let dropped = tokio::time::timeout(Duration::from_millis(1), topics.wait("events", Duration::MAX));
        assert!(dropped.await.is_err());
        assert!(topics.lock().is_empty());
    }
}
