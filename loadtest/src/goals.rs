//! What Berth is meant to reach, from `goals.toml`, and whether a run reached it.
//!
//! A goal that is missed is printed like one that is reached; only what wasn't measured is left out.

use std::ops::Neg;

use anyhow::Result;
use serde::Deserialize;

use crate::{
    report::{Line, Report},
    server::BERTH_NAME,
};

const GOALS: &str = include_str!("../goals.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Goals {
    goal: Vec<Goal>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Goal {
    /// Whose goal it is: Berth's, if nobody is named.
    server: Option<String>,
    workload: String,
    figure: String,
    at_most: Option<f64>,
    at_least: Option<f64>,
    /// So many times less than another server of the run.
    times_less: Option<f64>,
    /// So many times more.
    times_more: Option<f64>,
    /// Which; the best of the others where none is named.
    than: Option<String>,
}

/// A line for each goal of which something was measured.
pub(crate) fn judge(report: &Report) -> Result<String> {
    let goals: Goals = toml::from_str(GOALS)?;
    Ok(goals.goal.iter().filter_map(|goal| goal.judge(report)).collect())
}

impl Goal {
    fn judge(&self, report: &Report) -> Option<String> {
        let line = report.summary.iter().find(|line| line.workload == self.workload && line.figure == self.figure)?;
        let server = self.server.as_deref().unwrap_or(BERTH_NAME);
        let names = report.names();
        let ours = median(line, names.iter().position(|name| *name == server)?)?;
        let shown = format!("{ours:.*}", line.digits);
        let ratio = |times: f64, word: &str| {
            let (other, theirs) = self.other(line, &names)?;
            let found = if word == "less" { theirs / ours } else { ours / theirs };
            Some((format!("{times} times {word} than {other}"), format!("{found:.1} times"), found >= times))
        };
        let (wanted, found, is_reached) = match (self.at_most, self.at_least, self.times_less, self.times_more) {
            (Some(most), ..) => (format!("at most {most}"), shown, ours <= most),
            (_, Some(least), ..) => (format!("at least {least}"), shown, ours >= least),
            (.., Some(times), _) => ratio(times, "less")?,
            (.., Some(times)) => ratio(times, "more")?,
            (None, None, None, None) => return None,
        };
        let verdict = if is_reached { "reached" } else { "not reached" };
        Some(format!("goal: {server}, {}, {}: {wanted}: {verdict} ({found})\n", self.workload, line.unit))
    }

    /// With whom it compares, and what that one has.
    fn other<'a>(&self, line: &Line, names: &[&'a str]) -> Option<(&'a str, f64)> {
        let is_meant = |name: &str| match &self.than {
            Some(than) => name == than,
            None => !name.starts_with(BERTH_NAME),
        };
        let others = names.iter().enumerate().filter(|(_, name)| is_meant(name));
        let found = others.filter_map(|(place, name)| Some((*name, median(line, place)?)));
        let best = if self.times_more.is_some() { f64::neg } else { f64::from };
        found.min_by(|one, other| best(one.1).total_cmp(&best(other.1)))
    }
}

fn median(line: &Line, place: usize) -> Option<f64> {
    Some(line.servers.get(place).copied()??.range.median)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_goal_that_is_missed_is_said_to_be() {
        let text = judge(&sample(&[20.0, 30.0, 10.0], &[120.0, 90.0, 110.0])).unwrap();
        assert!(text.contains("at most 16: not reached (20.0)"), "{text}");
        assert!(text.contains("12 times less than Distribution: not reached (5.5 times)"), "{text}");
        assert!(text.contains("5 times less than Distribution: reached (5.5 times)"), "{text}");
        assert!(!text.contains("GET /v2/"), "{text}");
    }

    #[test]
    fn more_of_what_is_to_be_much_is_better() {
        let goal = "workload = 'manifest by tag'\nfigure = 'cpu_us'\ntimes_more = 0.2";
        let goal: Goal = toml::from_str(goal).unwrap();
        let text = goal.judge(&sample(&[20.0, 30.0, 10.0], &[120.0, 90.0, 110.0])).unwrap();
        assert!(text.contains("0.2 times more than Distribution: not reached (0.2 times)"), "{text}");
    }

    #[test]
    fn each_goal_is_of_one_kind_and_of_something_that_is_measured() {
        let goals: Goals = toml::from_str(GOALS).unwrap();
        let all = crate::workload::selected(&[], true).unwrap();
        for goal in &goals.goal {
            let kinds = [goal.at_most, goal.at_least, goal.times_less, goal.times_more];
            assert_eq!(kinds.iter().flatten().count(), 1, "{goal:?}");
            let is_known = ["start", "idle", "whole round"].contains(&goal.workload.as_str())
                || all.iter().any(|workload| workload.name() == goal.workload);
            assert!(is_known, "{goal:?}");
        }
    }
}
