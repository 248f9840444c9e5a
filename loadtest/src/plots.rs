//! Which plots a report has: what a request costs, and how long the slowest of them take.

use crate::{
    latency::KEPT,
    plot::{self, Axis, Curve, Group},
    report::{Line, Report},
};

/// The figures that are a cost of CPU, for the bars.
const COSTS: [&str; 3] = ["cpu_us", "cpu_ms", "cpu_s"];

/// Of which workloads percentiles are drawn, where they were measured: their name, and that of the file.
const CURVES: [(&str, &str); 4] = [
    ("manifest by tag", "manifest-by-tag"),
    ("manifest by tag at a fixed rate", "manifest-by-tag-at-a-fixed-rate"),
    ("production mix at a fixed rate", "production-mix-at-a-fixed-rate"),
    ("push of a small image", "push-of-a-small-image"),
];

/// Where the longest latency is drawn on the axis of percentiles: as if one in so many took longer.
const MOST: f64 = 10_000.0;

/// All plots of a report: a name for each file, and the SVG.
pub(crate) fn all(report: &Report) -> Vec<(&'static str, String)> {
    let curves = CURVES.into_iter().filter_map(|(workload, name)| Some((name, percentiles(report, workload)?)));
    costs(report).map(|plot| ("cpu", plot)).into_iter().chain(curves).collect()
}

fn costs(report: &Report) -> Option<String> {
    let lines: Vec<_> = report.summary.iter().filter(|line| COSTS.contains(&line.figure)).collect();
    let group = |line: &&Line| Group {
        name: line.workload.to_owned(),
        bars: line
            .servers
            .iter()
            .map(|found| {
                found.map(|found| {
                    let (median, unit) = (found.range.median, line.unit.trim_start_matches("CPU, "));
                    (median, format!("{median:.*} {unit}", line.digits))
                })
            })
            .collect(),
    };
    let groups: Vec<Group> = lines.iter().map(group).collect();
    let title = "CPU time of the server for one operation; each group has its own scale";
    (!groups.is_empty()).then(|| plot::bars(title, &report.names(), &groups))
}

/// Latencies over percentiles, the medians of the rounds. The axis is stretched towards the slowest.
fn percentiles(report: &Report, workload: &str) -> Option<String> {
    let place = |share: f64| (1.0 / (1.0 - share)).min(MOST);
    let curve = |name: &str| {
        let point = |(figure, share): (&str, f64)| Some((place(share), report.range(name, workload, figure)?.median));
        let points: Vec<_> = KEPT.into_iter().filter_map(point).collect();
        (!points.is_empty()).then(|| Curve { name: name.to_owned(), points })
    };
    let curves: Vec<Curve> = report.names().into_iter().filter_map(curve).collect();
    if curves.is_empty() {
        return None;
    }
    let label = |name: &str| match name.trim_end_matches("_ms") {
        "p999" => "99.9 %".to_owned(),
        "max" => "all".to_owned(),
        other => format!("{} %", other.trim_start_matches('p')),
    };
    let marks = KEPT.iter().filter(|(name, _)| !["p25_ms", "p95_ms"].contains(name));
    let x = Axis {
        name: "share of requests that took no longer".to_owned(),
        marks: marks.map(|(name, share)| (place(*share), label(name))).collect(),
        is_logarithmic: true,
    };
    let y = Axis::powers("ms", curves.iter().flat_map(|curve| &curve.points).map(|point| point.1));
    Some(plot::lines(&format!("Latency: {workload}"), &x, &y, &curves))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_report_has_a_plot_of_what_it_measured() {
        let plots = all(&sample(&[20.0], &[100.0]));
        let names: Vec<&str> = plots.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["cpu", "manifest-by-tag"]);
        assert!(plots[0].1.contains("20.0 µs") && plots[0].1.contains("100.0 µs"), "{}", plots[0].1);
        assert_eq!(plots[1].1.matches("<polyline").count(), 2, "{}", plots[1].1);
    }
}
