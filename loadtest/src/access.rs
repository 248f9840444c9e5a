//! `loadtest access`: what logins and tokens cost Berth, beside the same requests without.
//!
//! One server, whose rules let anybody do the same, so that only the way in differs. What is measured takes
//! turns, round by round; who comes first alternates.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::{
    client::{Client, authorized, request},
    latency::Latencies,
    load::{self, Meter, Spent},
    report::Range,
    requests::Requests,
    server::{Product, Server, Site},
    workload::{self, CONNECTIONS, REPOSITORY},
};

/// `ann` with the password `secret`, as an htpasswd file has it (bcrypt).
const USERS: &str = "ann:$2b$04$AP0oqWShp.6q0I/omCbC6OATbfBIQtXs6Hn9Lu1s34DlcHlvY2dW.\n";

/// The same in an `Authorization` header.
const PASSWORD: &str = "Basic YW5uOnNlY3JldA==";

/// How many tokens are shown for the first time in a round: a second's work.
const NEW: usize = 8000;

/// The figures by what was asked, in the table's order.
type Found = BTreeMap<Asked, Vec<Figure>>;

/// CPU of one request in microseconds, and the median latency in milliseconds.
type Figure = (f64, f64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Anonymous,
    Remembered,
    New,
    Issued,
}

impl Asked {
    const ALL: [Self; 4] = [Self::Anonymous, Self::Remembered, Self::New, Self::Issued];

    fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "manifest by tag, anonymous",
            Self::Remembered => "the same with a token that was believed before",
            Self::New => "the same with a token that is seen for the first time",
            Self::Issued => "a token, for a password that was right before",
        }
    }
}

/// Measures all of it on a server of its own, and prints a table.
pub(crate) async fn measure(product: &Product, data: &Path, rounds: usize, span: Duration) -> Result<()> {
    let _site = Site::empty(data)?;
    let users = std::path::absolute(data)?.join("users");
    fs::write(&users, USERS)?;
    let product = product.clone().with(&[
        ("BERTH_AUTH__HTPASSWD", &users.display().to_string()),
        ("BERTH_AUTH__RULES__ALL__WHO", "everyone"),
        ("BERTH_AUTH__RULES__ALL__ROLE", "writer"),
        ("BERTH_AUTH__RULES__ALL__REPOSITORIES", "**"),
        ("BERTH_AUTH__TOKEN__TTL", "1h"),
    ]);
    let (server, _) = Server::start(&product, data).await?;
    workload::seed(&server).await?;
    let bench = Bench { server, span };
    let mut found = Found::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let mut order = Asked::ALL;
        order.rotate_left(round % Asked::ALL.len());
        for asked in order {
            found.entry(asked).or_default().push(bench.ask(asked).await?);
        }
    }
    bench.server.stop().await?;
    println!("{}", table(&found, rounds));
    Ok(())
}

struct Bench {
    server: Server,
    span: Duration,
}

impl Bench {
    async fn ask(&self, asked: Asked) -> Result<Figure> {
        match asked {
            Asked::Anonymous => self.repeat(self.manifest(None)).await,
            Asked::Remembered => self.repeat(self.manifest(Some(&self.token().await?))).await,
            Asked::Issued => self.repeat(self.for_token()).await,
            Asked::New => self.show_each_once().await,
        }
    }

    fn manifest(&self, token: Option<&str>) -> Vec<u8> {
        let head = request(self.server.address, "GET", &format!("/v2/{REPOSITORY}/manifests/latest"), "", 0);
        match token {
            Some(token) => authorized(&head, &format!("Bearer {token}")),
            None => head,
        }
        .into_bytes()
    }

    fn for_token(&self) -> Vec<u8> {
        let target = format!("/v2/token?service=berth&scope=repository:{REPOSITORY}:pull");
        authorized(&request(self.server.address, "GET", &target, "", 0), PASSWORD).into_bytes()
    }

    async fn token(&self) -> Result<String> {
        token(&mut Client::connect(self.server.address).await?, &self.for_token()).await
    }

    async fn repeat(&self, request: Vec<u8>) -> Result<Figure> {
        let requests = Requests::from(request);
        let clients = load::connect(self.server.address, CONNECTIONS, &requests).await?;
        let (latencies, spent, _) = load::repeat(clients, requests, self.span, self.server.pid).await?;
        Ok(figure(&spent, &latencies))
    }

    /// Shows each of many tokens once.
    async fn show_each_once(&self) -> Result<Figure> {
        let mut ready = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut client = Client::connect(self.server.address).await?;
            let mut requests = Vec::new();
            for _ in 0..NEW / CONNECTIONS {
                requests.push(self.manifest(Some(&token(&mut client, &self.for_token()).await?)));
            }
            ready.push((client, requests));
        }
        let meter = Meter::start(self.server.pid)?;
        let mut tasks = JoinSet::new();
        for (client, requests) in ready {
            tasks.spawn(load::each_once(client, requests));
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        Ok(figure(&meter.stop().await?, &latencies.into_iter().collect()))
    }
}

async fn token(client: &mut Client, request: &[u8]) -> Result<String> {
    let answer: serde_json::Value = serde_json::from_slice(&client.fetch(request).await?)?;
    Ok(answer["token"].as_str().context("an answer without a token")?.to_owned())
}

fn figure(spent: &Spent, latencies: &Latencies) -> Figure {
    let figures = spent.per_operation(latencies, "cpu_us", 1e6);
    (figures["cpu_us"], figures["p50_ms"])
}

/// In Markdown, with the goal and whether it is reached.
fn table(found: &Found, rounds: usize) -> String {
    let range = |figures: &[Figure], of: fn(&Figure) -> f64| Range::of(figures.iter().map(of).collect());
    let mut text = String::from("| request | CPU, µs | p50, ms |\n|---|---|---|\n");
    for (asked, figures) in found {
        if let (Some(cpu), Some(latency)) = (range(figures, |figure| figure.0), range(figures, |figure| figure.1)) {
            text.push_str(&format!("| {} | {} | {} |\n", asked.name(), cpu.text(1), latency.text(2)));
        }
    }
    text.push_str(&format!("\nMedian of {rounds} rounds (least–most). CPU is the server's, user and system.\n"));
    let median =
        |asked| found.get(&asked).and_then(|figures| range(figures, |figure| figure.0)).map(|range| range.median);
    if let (Some(without), Some(with)) = (median(Asked::Anonymous), median(Asked::Remembered)) {
        let more = (with / without - 1.0) * 100.0;
        let verdict = if more <= 10.0 { "reached" } else { "not reached" };
        text.push_str(&format!("goal: with a token at most 10 % more than without: {verdict} ({more:+.1} %)\n"));
    }
    text
}
