//! The master behind Sentinels: who it is now.
//!
//! It is the one that more than half of the Sentinels in the configuration name. A single one may be behind
//! the others, or cut off together with a master that has been replaced. Who is named must still say of
//! itself that it is a master; and whether it is believed is decided by the bucket, as for any other server.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    super::IndexError,
    access::{Access, Address, Login, written},
    failure::{reason, why_not_connected},
    request::read,
};

/// How long a Sentinel has to answer, from the first byte of the connection: another one mostly does.
const PATIENCE: Duration = Duration::from_secs(1);

/// The Sentinels that the configuration names.
pub(super) struct Sentinels {
    each: Vec<Access>,
    service: String,
    /// How the master is met, but for its address.
    master: Access,
    /// The last one that was named.
    last: Mutex<Option<Address>>,
}

/// What the Sentinels said that answered so far.
#[derive(Default)]
struct Votes {
    named: HashMap<Address, usize>,
    /// A part of a sentence for each.
    said: Vec<String>,
    /// Whether one of them said what waiting won't change.
    refused: bool,
}

impl Sentinels {
    /// `servers` are the Sentinels, met by the user for Redis, which the master is met by; for them there is `login`.
    pub(super) fn new(servers: &[Access], service: &str, login: &Login) -> Result<Self, IndexError> {
        let each: Result<_, _> = servers.iter().map(|server| server.with_login(login)).collect();
        let master = servers.first().ok_or_else(|| IndexError::Broken("no Sentinel is named".to_owned()))?;
        Ok(Self {
            each: each.map_err(why_not_connected)?,
            service: service.to_owned(),
            master: master.clone(),
            last: Mutex::default(),
        })
    }

    /// Asks all at once, and waits for no more answers than are needed.
    ///
    /// # Errors
    /// [`IndexError::Unreachable`] while no server has a majority; [`IndexError::Broken`] where all that answered
    /// don't know the service or don't let us ask.
    pub(super) async fn master(&self) -> Result<Access, IndexError> {
        let majority = self.each.len() / 2 + 1;
        let mut asked: FuturesUnordered<_> =
            self.each.iter().map(async |sentinel| (written(&sentinel.address()), self.ask(sentinel).await)).collect();
        let mut votes = Votes::default();
        while let Some((sentinel, answer)) = asked.next().await {
            if let Some((address, count)) = votes.count(&sentinel, answer, &self.service)
                && count == majority
            {
                self.tell(&address);
                return self.master.at(address).map_err(why_not_connected);
            }
        }
        let why = format!("no master is named by more than half of the Sentinels: {}", votes.said.join("; "));
        let nobody_knows = votes.named.is_empty() && votes.refused;
        Err(if nobody_knows { IndexError::Broken(why) } else { IndexError::Unreachable(why) })
    }

    /// Whom one Sentinel names; nobody, where it doesn't watch over the service.
    async fn ask(&self, sentinel: &Access) -> Result<Option<Address>, IndexError> {
        let asking = async {
            let mut connection = sentinel.open().await?;
            redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service).query_async(&mut connection).await
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answer) => answer.map_err(why_not_connected).and_then(read),
            Err(_) => Err(IndexError::Unreachable(format!("no answer within {PATIENCE:?}"))),
        }
    }

    fn tell(&self, address: &Address) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(address) {
            tracing::info!(service = self.service, master = written(address), "the Sentinels name this Redis server");
            *last = Some(address.clone());
        }
    }
}

impl Votes {
    /// Whom the answer is for, and how many that are now.
    fn count(
        &mut self,
        sentinel: &str,
        answer: Result<Option<Address>, IndexError>,
        service: &str,
    ) -> Option<(Address, usize)> {
        match answer {
            Ok(Some(address)) => {
                self.said.push(format!("{sentinel} names {}", written(&address)));
                let count = self.named.entry(address.clone()).or_default();
                *count += 1;
                return Some((address, *count));
            }
            Ok(None) => {
                self.refused = true;
                self.said.push(format!("{sentinel} knows no {service:?}"));
            }
            Err(error) => {
                self.refused |= matches!(error, IndexError::Broken(_));
                self.said.push(format!("{sentinel}: {}", reason(&error)));
            }
        }
        None
    }
}
