//! What `berth index status` says that a reconciliation would cost, beside what one costs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{process::Command, time::Duration};

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use super::{Asked, Counted, content, push_in_five};

impl Counted {
    /// Runs the binary over the same store and index, with spans that a test can wait for.
    fn run(&self, arguments: &[&str], more: &[(&str, &str)]) -> (String, Vec<Asked>) {
        self.forget();
        let quick =
            [("BERTH_INDEX__LEASE", "2s"), ("BERTH_INDEX__WRITE_DEADLINE", "1s"), ("BERTH_INDEX__MARGIN", "300ms")];
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(arguments).env_clear().envs(self.settings.iter().map(|(key, value)| (*key, value.as_str())));
        let output = command.envs(quick).envs(more.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), self.store.take())
    }

    /// What a reconciliation would cost, and what it cost to say so.
    fn cost(&self, more: &[(&str, &str)]) -> (Value, Vec<Asked>) {
        let (said, asked) = self.run(&["index", "status", "--json"], more);
        let mut status: Value = serde_json::from_str(&said).unwrap();
        println!("{:#}", status["reconciliation"]);
        (status["reconciliation"].take(), asked)
    }
}

/// The listings, reads and looks that are about what a reconciliation goes through.
fn counted(asked: &[Asked]) -> [usize; 3] {
    let lists = |asked: &&Asked| {
        asked.target.contains("list-type=2")
            && ["repos", "accounts", "rules"]
                .iter()
                .any(|folder| asked.target.contains(&format!("registry%2F{folder}%2F")))
    };
    let of = |method: Method, asked: &Asked| {
        asked.method == method
            && ["repos", "data", "accounts", "rules"]
                .iter()
                .any(|folder| asked.target.contains(&format!("/registry/{folder}/")))
    };
    [
        asked.iter().filter(lists).count(),
        asked.iter().filter(|asked| of(Method::GET, asked)).count(),
        asked.iter().filter(|asked| of(Method::HEAD, asked)).count(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_costs_what_was_said() {
    let bench = Counted::start(Duration::ZERO).await;
    let (_app, client) = bench.open().await;
    for (repository, images) in [("app", 3), ("team/app", 40), ("team/app/nested", 1)] {
        for seed in 0..images {
            push_in_five(&client, repository, &format!("v{}", seed % 30), &content(seed)).await;
        }
    }
    client.delete("/v2/app/manifests/v1").await.expect(202);
    client.push_blob("links/only", Bytes::from_static(b"no manifest needs it")).await;

    let (cost, asked) = bench.cost(&[]);
    assert_eq!(cost["counted"], "index");
    // Five to see how long one takes: nothing was walked.
    assert_eq!(counted(&asked), [5, 0, 0], "{asked:#?}");
    let said = ["lists", "gets", "heads"].map(|kind| cost[kind].as_u64().unwrap() as usize);
    let dollars = said[0] as f64 * 0.000_005 + (said[1] + said[2]) as f64 * 0.000_000_4;
    assert!((cost["dollars"].as_f64().unwrap() - dollars).abs() < 1e-9 && cost["seconds"].as_f64().unwrap() > 0.0);

    // By an index that isn't the bucket's own.
    let (by_listing, asked) = bench.cost(&[("BERTH_INDEX__NAMESPACE", "other:")]);
    assert!(by_listing["counted"]["bucket"]["objects"].as_u64().unwrap() > 150, "{by_listing}");
    assert_eq!(counted(&asked)[0], 5 + 1 + 2, "the repositories on one page, and the roster: {asked:#?}");
    let listed = ["lists", "gets", "heads"].map(|kind| by_listing[kind].as_u64().unwrap() as usize);

    let (_, asked) = bench.run(&["index", "rebuild"], &[]);
    let seen = counted(&asked);
    println!("said {said:?}, counted by listing {listed:?}, seen {seen:?}");
    assert_eq!(listed, seen, "{asked:#?}");
    // A repository without a manifest is only known to an index that was filled with it: its folder is found, each of
    // the three listed, and its link looked for.
    assert_eq!(said, [seen[0] - 4, seen[1], seen[2] - 1]);
    let (cost, _) = bench.cost(&[]);
    assert_eq!(["lists", "gets", "heads"].map(|kind| cost[kind].as_u64().unwrap() as usize), seen);
}
