//! The wish to end: asked for once, politely, and a second time for at once.

use std::sync::Arc;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Serve,
    Drain,
    EndNow,
}

/// Tells a server to end. Clones are the same wish.
#[derive(Clone, Debug)]
pub struct Drain(Arc<watch::Sender<Wish>>);

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Wish::Serve)))
    }

    /// Asks the server to end: at the first call once its running requests have, at the second at once.
    pub fn ask(&self) {
        self.0.send_modify(|wish| {
            *wish = match *wish {
                Wish::Serve => Wish::Drain,
                Wish::Drain | Wish::EndNow => Wish::EndNow,
            }
        });
    }

    /// Returns once it was asked for; workers other than the server end by it, too.
    pub async fn asked(&self) {
        self.reached(Wish::Drain).await;
    }

    /// Returns once it was asked for again.
    pub async fn insisted(&self) {
        self.reached(Wish::EndNow).await;
    }

    async fn reached(&self, least: Wish) {
        // The sender lives in `self`, so this ends in no other way.
        let _ = self.0.subscribe().wait_for(|wish| *wish >= least).await;
    }

    /// Asks at every SIGTERM and SIGINT, for as long as the process lives. Errors where the process may not
    /// have handlers.
    pub fn ask_at_signals(&self) -> std::io::Result<()> {
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind)?;
            let drain = self.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    drain.ask();
                }
            });
        }
        Ok(())
    }
}
