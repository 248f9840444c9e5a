//! Searches a model for broken promises, and says what it found.

use std::{collections::BTreeSet, fmt::Debug, hash::Hash, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// A model that can be searched by several threads.
pub(crate) trait Searchable:
    Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq + Send + Sync>
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
}

impl<M> Searchable for M where
    M: Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq + Send + Sync>
        + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// What is tried, and what breaks a promise of it if it is left out.
pub(crate) struct Case<M, C> {
    model: M,
    left_out: Vec<(&'static str, Vec<C>)>,
    spare: Vec<C>,
}

/// A model of which nothing breaks a promise with all checks on.
pub(crate) fn case<M, C>(model: M) -> Case<M, C> {
    Case { model, left_out: Vec::new(), spare: Vec::new() }
}

impl<M, C: Copy> Case<M, C> {
    /// Without any one of these checks the promise is broken.
    pub(crate) fn alone(mut self, promise: &'static str, checks: &[C]) -> Self {
        self.left_out.extend(checks.iter().map(|check| (promise, vec![*check])));
        self
    }

    /// Each of these two checks closes the same way, so the promise is broken only without both.
    pub(crate) fn together(mut self, promise: &'static str, checks: [C; 2]) -> Self {
        self.left_out.push((promise, checks.to_vec()));
        self
    }

    /// No promise is broken without any one of these checks: others leave nothing for them to find.
    pub(crate) fn spare(mut self, checks: &[C]) -> Self {
        self.spare.extend(checks);
        self
    }
}

/// Searches all cases, and returns the checks that were left out.
pub(crate) fn all<M, C>(cases: &[Case<M, C>], without: impl Fn(&M, &[C]) -> M) -> Vec<C>
where
    M: Searchable,
    C: Copy,
{
    let began = Instant::now();
    let mut tried = Vec::new();
    for Case { model, left_out, spare } in cases {
        holds(model.clone());
        spare.iter().for_each(|check| holds(without(model, &[*check])));
        tried.extend(spare);
        for (promise, checks) in left_out {
            if checks.len() > 1 {
                checks.iter().for_each(|check| holds(without(model, &[*check])));
            }
            fails(without(model, checks), promise);
            tried.extend(checks);
        }
    }
    println!("all of that in {:.0?}", began.elapsed());
    tried
}

/// The checks that were never left out.
pub(crate) fn missing<C: Copy + PartialEq>(all: &[C], tried: &[C]) -> Vec<C> {
    all.iter().filter(|check| !tried.contains(check)).copied().collect()
}

/// Searches every state, and breaks no promise.
pub(crate) fn holds<M: Searchable>(model: M) {
    let (named, began) = (format!("{model:?}"), Instant::now());
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    if let Some((promise, path)) = checker.discoveries().into_iter().next() {
        panic!("not {promise:?}: {:?} in {named}", path.into_actions());
    }
    println!("right in all {} states, {:.1?}: {named}", checker.unique_state_count(), began.elapsed());
}

/// Searches until a promise is broken.
pub(crate) fn fails<M: Searchable>(model: M, promise: &'static str) {
    let (named, began) = (format!("{model:?}"), Instant::now());
    let until = HasDiscoveries::AllOf(BTreeSet::from([promise]));
    let checker = model.checker().threads(2).finish_when(until).spawn_bfs().join();
    let path = checker.discovery(promise).unwrap_or_else(|| panic!("always {promise:?}: {named}"));
    let (steps, states) = (path.into_actions().len(), checker.unique_state_count());
    println!("not {promise:?} after {steps} steps, {states} states, {:.1?}: {named}", began.elapsed());
}
