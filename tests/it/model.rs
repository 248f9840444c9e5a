//! A registry in memory, and random calls of the API compared with it.
//!
//! Two servers, in turns at random, over one store and one index: what either answers must be what one
//! registry in one memory would. Repositories, tags and blobs are few, so that calls meet. Where an answer
//! differs, proptest cuts the calls down to those that it takes, and the failure shows them with their
//! answers. `PROPTEST_CASES` sets how many sequences are tried.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod contents;
mod exchange;
mod registry;
mod uploads;

use std::time::Duration;

use axum::{Router, body::Body};
use berth::{
    api::{self, observe::Seen},
    auth::{AccessRules, Authority},
    config::Role,
    oci::Algorithm,
    reconcile,
    registry::Options,
};
use http_body_util::BodyExt;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tower::ServiceExt;

use crate::{
    rules_bench::{self as bench, Bench, whole_manifest},
    rules_faults::assert_at_rest,
};
use calls::{ALL, Call, KINDS, Read, Reference, What, calls};
use contents::{BLOBS, MANIFESTS, REPOSITORIES, TAGS};
use exchange::{Answer, Request};
use registry::Model;

/// The two servers, the model, and what was said so far.
struct Run {
    bench: Bench,
    servers: [Router; 2],
    model: Model,
    said: Vec<String>,
}

impl Run {
    fn new(bench: Bench) -> Self {
        let servers = servers(&bench);
        Self { bench, servers, model: Model::default(), said: Vec::new() }
    }

    /// The same bucket under an index that has nothing in it yet.
    async fn lose_index(self) -> Self {
        self.bench.work().await;
        let bench = self.bench.with_new_index().await;
        reconcile::walk(&bench.a, |_| {}).await.unwrap();
        let mut said = self.said;
        said.push("the index is lost, and filled from the bucket".to_owned());
        Self { servers: servers(&bench), bench, model: self.model, said }
    }

    async fn make(&mut self, call: &Call) -> Result<(), TestCaseError> {
        if let What::Work = call.what {
            self.said.push("background work".to_owned());
            self.bench.work().await;
        }
        for exchange in self.model.take(&call.what) {
            let answer = send(&self.servers[call.server], &exchange.request).await;
            if answer.is_for_want_of_time() {
                return Err(TestCaseError::reject("the index took longer than a request may wait for it"));
            }
            let wrong = exchange.expected.differs(&exchange.request, &answer).or_else(|| {
                let upload = &mut self.model.uploads[exchange.upload?];
                upload.learn(answer.header("location"))
            });
            self.said.push(format!("{} {} -> {answer}", ["A", "B"][call.server], exchange.request));
            if let Some(wrong) = wrong {
                let said = self.said.join("\n  ");
                return Err(TestCaseError::fail(format!("{wrong} in the last answer of\n  {said}\n")));
            }
        }
        Ok(())
    }

    /// Whatever was done: two grace periods later nothing is left that nothing needs, and what is needed is there.
    async fn assert_collected(&self) {
        for _ in 0..2 {
            self.bench.clock.advance(options().grace + Duration::from_secs(1));
            self.bench.work().await;
            self.bench.collect().await;
        }
        let said = self.said.join("\n  ");
        let what = format!("after\n  {said}\n");
        assert_eq!(assert_at_rest(&self.bench, &REPOSITORIES, &what).await, 0, "garbage is left {what}");
        for (repository, digest) in self.model.manifests() {
            whole_manifest(&self.bench.repo(repository).await, &digest)
                .await
                .unwrap_or_else(|error| panic!("{error} {what}"));
        }
    }

    /// Asks for everything, of one server after the other.
    async fn compare_all(&mut self) -> Result<(), TestCaseError> {
        for (turn, what) in everything().into_iter().enumerate() {
            let said = self.said.len();
            self.make(&Call { server: turn % 2, what }).await?;
            self.said.truncate(said);
        }
        Ok(())
    }
}

fn servers(bench: &Bench) -> [Router; 2] {
    [&bench.a, &bench.b].map(|engine| {
        api::router(engine.clone(), Authority::of_rules(AccessRules::new(Some(Role::Admin), None)).unwrap(), None)
    })
}

async fn send(server: &Router, request: &Request) -> Answer {
    let mut sent = http::Request::builder().method(request.method).uri(&request.target);
    for (name, value) in &request.headers {
        sent = sent.header(*name, value);
    }
    let response = server.clone().oneshot(sent.body(Body::from(request.body.clone())).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let cause = head.extensions.get::<Seen>().and_then(|seen| seen.error.clone()).and_then(|error| error.cause);
    Answer { status: head.status, headers: head.headers, body, cause }
}

/// A look at everything that there may be.
fn everything() -> Vec<What> {
    let mut all = vec![What::Catalog { page: ALL }];
    for repository in 0..REPOSITORIES.len() {
        all.push(What::Tags { repository, page: ALL });
        let tags = (0..TAGS.len()).map(Reference::Tag);
        for reference in tags.clone() {
            all.push(What::ReadManifest { repository, reference, read: Read::Get });
        }
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for place in 0..MANIFESTS.len() {
                let reference = Reference::Digest(place, algorithm);
                all.push(What::ReadManifest { repository, reference, read: Read::Get });
            }
            for place in 0..BLOBS.len() {
                all.push(What::ReadBlob { repository, blob: (place, algorithm), read: Read::Get });
            }
            all.push(What::Referrers { repository, subject: (0, algorithm), kind: None, page: ALL });
            all.push(What::Referrers { repository, subject: (0, algorithm), kind: Some(KINDS[0]), page: ALL });
        }
    }
    all
}

/// How many sequences, unless `PROPTEST_CASES` says so: enough to meet most of what there is to meet in half
/// a minute.
fn cases(usual: u32) -> u32 {
    if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { usual }
}

/// Runs `cases` sequences, each over a bench of its own.
fn compare(cases: u32, open: impl AsyncFn() -> Bench, index_is_lost: bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // A machine that is too busy leaves what a write did undecided. Another sequence is tried instead, but if
    // that happens often, something else is wrong.
    let max_global_rejects = cases / 4 + 1;
    let config =
        Config { cases, max_global_rejects, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let tried = TestRunner::new(config).run(&calls(), |calls| {
        runtime.block_on(async {
            let mut run = Run::new(open().await);
            for call in &calls {
                run.make(call).await?;
            }
            run.compare_all().await?;
            if index_is_lost {
                run = run.lose_index().await;
                run.compare_all().await?;
            }
            run.assert_collected().await;
            Ok(())
        })
    });
    if let Err(failure) = tried {
        panic!("{failure}");
    }
}

fn options() -> Options {
    // Nothing here is about time: a machine that stalls for a while must not look like an answer.
    Options { timing: berth::epoch::Timing::default(), ..bench::options() }
}

#[test]
fn two_servers_over_a_directory_answer_as_one_registry() {
    compare(cases(100), || bench::local(options()), false);
}

#[test]
fn two_servers_over_redis_and_s3_answer_as_one_registry() {
    compare(cases(16), || bench::remote(options()), false);
}

#[test]
fn a_registry_that_lost_its_index_answers_as_before() {
    compare(cases(40), || bench::local(options()), true);
}
