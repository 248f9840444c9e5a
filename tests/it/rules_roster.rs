//! Accounts and rules that are made at run time: whatever fails, there is one answer, and it is the bucket's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use berth::{
    config::{RepositoryPattern, Role, Rule, Text, Who, Written},
    error::{Code, Error},
    index::facts::Account,
    roster::{
        Roster,
        manage::{Manager, Wanted},
    },
    storage::key::EntryName,
};

use crate::{
    rules_bench::{self as bench, Bench, code, kinds},
    wrappers::How,
};

const ROOT: Manager = Manager::Root("test");

fn name(text: &str) -> EntryName {
    text.parse().unwrap()
}

fn writer(repositories: &[&str]) -> Wanted {
    let pattern = |text: &&str| Text(RepositoryPattern::read(text).unwrap());
    Wanted { grant: Some((Role::Writer, repositories.iter().map(pattern).collect())), ..Wanted::default() }
}

async fn create(roster: &Roster, account: &str) -> Result<(), Error> {
    roster.create_account(&ROOT, &name(account), &writer(&["team/*"])).await.map(drop)
}

/// What both engines see, which must be the same.
async fn seen(bench: &Bench, account: &str) -> Option<Account> {
    let of =
        async |engine| Roster::new(Arc::clone(engine)).current().await.unwrap().accounts.get(&name(account)).cloned();
    let (a, b) = (of(&bench.a).await, of(&bench.b).await);
    assert_eq!(a, b);
    a
}

/// What can be done to an account, and what it comes to if it happens.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Create,
    Disable,
    Delete,
}

impl Doing {
    async fn run(self, roster: &Roster) -> Result<(), Error> {
        let disabled = Wanted { disabled: Some(true), ..Wanted::default() };
        match self {
            Self::Create => create(roster, "ci").await,
            Self::Disable => roster.change_account_to(&ROOT, &name("ci"), &disabled).await.map(drop),
            Self::Delete => roster.delete_account(&ROOT, &name("ci")).await,
        }
    }

    fn has_happened(self, account: Option<&Account>) -> bool {
        match self {
            Self::Create => account.is_some(),
            Self::Disable => account.is_some_and(|account| account.disabled),
            Self::Delete => account.is_none(),
        }
    }
}

/// The writer loses the `k`th of its calls, or dies in it. What was acknowledged has happened, and whatever
/// happened is the same for every replica, after recovery, and after the loss of the index.
async fn survives(doing: Doing, how: How, k: usize) -> bool {
    let bench = bench::local(bench::options()).await;
    let roster = Arc::new(Roster::new(Arc::clone(&bench.a)));
    if !matches!(doing, Doing::Create) {
        create(&roster, "ci").await.unwrap();
    }
    roster.current().await.unwrap();
    bench.probe.strike_at(k, how);
    let acting = tokio::spawn({
        let roster = Arc::clone(&roster);
        async move { doing.run(&roster).await }
    });
    while !acting.is_finished() && !bench.probe.has_hung() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let acknowledged = acting.is_finished() && acting.await.unwrap().is_ok();
    if bench.probe.spare().is_none() {
        assert!(acknowledged);
        return false;
    }
    bench.clock.advance(Duration::from_secs(60));
    bench.work().await;
    let after = seen(&bench, "ci").await;
    assert!(!acknowledged || doing.has_happened(after.as_ref()), "{doing:?} {how:?} at {k}: {after:?}");
    assert!(bench.members(|names| names.pending()).await.is_empty(), "{doing:?} {how:?} at {k}");
    let kept = kinds(&bench.keys().await).get("entry").copied().unwrap_or(0);
    assert_eq!(kept, usize::from(after.is_some()), "{doing:?} {how:?} at {k}: what is outranked goes");
    let bench = bench.with_new_index().await;
    assert_eq!(seen(&bench, "ci").await, after, "{doing:?} {how:?} at {k}, after a rebuild");
    true
}

#[tokio::test]
async fn whatever_call_fails_there_is_one_answer() {
    for doing in [Doing::Create, Doing::Disable, Doing::Delete] {
        for how in [How::Before, How::After, How::HangBefore, How::HangAfter] {
            let mut k = 1;
            while survives(doing, how, k).await {
                k += 1;
            }
            assert!(k > 4, "only {k} calls were found");
        }
    }
}

#[tokio::test]
async fn a_change_that_comes_too_late_does_not_count() {
    let bench = bench::local(bench::options()).await;
    let (a, b) = (Roster::new(Arc::clone(&bench.a)), Roster::new(Arc::clone(&bench.b)));
    bench.probe.strike(How::Late, |_, call| call.kind == "put" && call.about.starts_with("accounts/"));
    assert_eq!(code(create(&a, "ci").await), Code::Unavailable);
    assert_eq!(seen(&bench, "ci").await, None);
    bench.clock.advance(Duration::from_secs(60));
    bench.work().await;
    assert_eq!(seen(&bench, "ci").await, None);
    // The name is free, and what came too late goes with what takes its place.
    create(&b, "ci").await.unwrap();
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await)["entry"], 1);
    let before = seen(&bench, "ci").await;
    let bench = bench.with_new_index().await;
    assert_eq!(seen(&bench, "ci").await, before);
}

/// Two replicas change one account many times at once: what was acknowledged is there, all of it.
#[tokio::test]
async fn no_change_is_lost_to_another() {
    let bench = bench::local(bench::options()).await;
    let (a, b) = (Arc::new(Roster::new(Arc::clone(&bench.a))), Arc::new(Roster::new(Arc::clone(&bench.b))));
    create(&a, "ci").await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..12 {
        let roster = Arc::clone(if number % 2 == 0 { &a } else { &b });
        tasks.push(tokio::spawn(async move {
            let more = Text(RepositoryPattern::read(&format!("n/{number}")).unwrap());
            let add = |there: Option<&Account>| {
                let mut account = there.unwrap().clone();
                account.repositories.push(more.clone());
                Ok(Some(account))
            };
            roster.change_account(&name("ci"), add).await
        }));
    }
    let mut acknowledged = 1;
    for task in tasks {
        acknowledged += usize::from(task.await.unwrap().is_ok());
    }
    assert!(acknowledged > 1);
    assert_eq!(seen(&bench, "ci").await.unwrap().repositories.len(), acknowledged);
    let bench = bench.with_new_index().await;
    assert_eq!(seen(&bench, "ci").await.unwrap().repositories.len(), acknowledged);
}

/// A name that was free again is another account, and what belonged to the first is gone.
#[tokio::test]
async fn a_deleted_account_leaves_nothing() {
    let bench = bench::local(bench::options()).await;
    let roster = Roster::new(Arc::clone(&bench.a));
    create(&roster, "ci").await.unwrap();
    let first = seen(&bench, "ci").await.unwrap();
    assert_eq!(code(create(&roster, "ci").await), Code::Conflict);
    roster.note_use(&name("ci"));
    while roster.uses().await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    roster.rotate_account(&ROOT, &name("ci"), Duration::ZERO).await.unwrap();
    roster.delete_account(&ROOT, &name("ci")).await.unwrap();
    assert_eq!(code(roster.delete_account(&ROOT, &name("ci")).await), Code::NameUnknown);
    bench.work().await;
    assert!(bench.keys().await.is_empty());
    assert!(roster.uses().await.unwrap().is_empty());
    create(&roster, "ci").await.unwrap();
    assert_ne!(seen(&bench, "ci").await.unwrap().keys, first.keys);
    let bench = bench.with_new_index().await;
    assert_ne!(seen(&bench, "ci").await.unwrap().keys, first.keys);
}

/// Nothing is asked but one value where nothing has changed; another replica is woken by a change.
#[tokio::test]
async fn a_look_costs_one_round_trip() {
    let bench = bench::local(bench::options()).await;
    let (a, b) = (Roster::new(Arc::clone(&bench.a)), Arc::new(Roster::new(Arc::clone(&bench.b))));
    create(&a, "ci").await.unwrap();
    b.current().await.unwrap();
    bench.probe_b.reset();
    b.current().await.unwrap();
    let cost = bench.probe_b.cost();
    assert_eq!((cost.round_trips, cost.requests), (1, 0), "{cost:?}");

    let watching = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.watch().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let rule = Rule {
        who: vec![Text(Who::Everyone)],
        role: Role::Reader,
        repositories: vec![Text(RepositoryPattern::every())],
    };
    a.put_rule(&ROOT, &name("open"), &rule).await.unwrap();
    while b.last_seen().rules.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    a.delete_rule(&ROOT, &name("open")).await.unwrap();
    while !b.last_seen().rules.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    watching.abort();
}
