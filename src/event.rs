//! Events: who wants to be told of what.
//!
//! What happened is written by the commit that made it true (the registry's rules do that, with the help of
//! [`Interests`]); telling it is the business of delivery. With no endpoint nothing is ever written.

use crate::{index::facts::EventFact, storage::key::EntryName};

/// What one endpoint wants to be told.
#[derive(Clone, Debug)]
pub struct Interest {
    /// The endpoint.
    pub endpoint: EntryName,
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

    /// Who wants this event.
    pub fn of<'a>(&'a self, event: &'a EventFact) -> impl Iterator<Item = &'a EntryName> {
        self.0.iter().filter(move |interest| interest.wants(event)).map(|interest| &interest.endpoint)
    }
}

impl Interest {
    fn wants(&self, _: &EventFact) -> bool {
        true
    }
}
