//! Events: who wants to be told of what, and by whom it was done.
//!
//! What happened is written by the commit that made it true (see [`crate::outbox`]); telling it is the business
//! of delivery. With no endpoint nothing is ever written.

use std::time::Duration;

use crate::{
    index::facts::{Action, EventFact, RequestFact},
    storage::key::EntryName,
};

/// By whom something is done, and by which request.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    /// Who, as tags' histories say it.
    pub by: String,
    /// The request, where somebody may want to be told of it.
    pub request: Option<RequestFact>,
}

impl From<&str> for Cause {
    fn from(by: &str) -> Self {
        Self { by: by.to_owned(), request: None }
    }
}

/// What one endpoint wants to be told.
#[derive(Clone, Debug)]
pub struct Interest {
    /// The endpoint.
    pub endpoint: EntryName,
    /// Whether it is told of what was read.
    pub pulls: bool,
    /// For how long it is tried to tell it something; what is older need not be remembered for it.
    pub max_age: Duration,
}

/// The endpoints, and what each wants to be told.
#[derive(Clone, Debug, Default)]
pub struct Interests(Vec<Interest>);

impl Interests {
    /// Those of these endpoints.
    pub fn new(interests: Vec<Interest>) -> Self {
        Self(interests)
    }

    /// Whether nobody wants anything, so that no event need be made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Interest> {
        self.0.iter()
    }

    /// Whether anybody is told of what was read.
    pub fn want_pulls(&self) -> bool {
        self.0.iter().any(|interest| interest.pulls)
    }

    /// Who wants this event.
    pub fn of<'a>(&'a self, event: &'a EventFact) -> impl Iterator<Item = &'a Interest> {
        self.0.iter().filter(move |interest| interest.wants(event))
    }
}

impl Interest {
    fn wants(&self, event: &EventFact) -> bool {
        self.pulls || event.action != Action::Pull
    }
}
