//! Plots as SVG: bars side by side, and lines.
//!
//! It knows nothing of what it draws. Colours are told apart without colour vision and on light and dark pages; each
//! bar has its number beside it.

use std::fmt::Write;

/// One colour for each server, in order; after Okabe and Ito's palette for all eyes.
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];

/// The width of a plot in pixels, and of what stands left of its axis.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 190.0;

/// Bars of one thing: what it is, and a value with its text for each server that has one.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) bars: Vec<Option<(f64, String)>>,
}

/// A line: whose it is, and its points. What isn't positive can't be drawn on a logarithmic axis and is left out.
#[derive(Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// An axis: what it says, and the places that have a number, with what stands there.
#[derive(Debug)]
pub(crate) struct Axis {
    pub(crate) name: String,
    pub(crate) marks: Vec<(f64, String)>,
    pub(crate) is_logarithmic: bool,
}

impl Axis {
    /// A logarithmic one with the powers of ten around what is drawn.
    pub(crate) fn powers(name: &str, values: impl Iterator<Item = f64> + Clone) -> Self {
        let values = values.filter(|&value| value > 0.0);
        let least = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
        let most = values.fold(0.0, f64::max).log10().ceil();
        let is_empty = !least.is_finite() || !most.is_finite();
        let (least, most) = if is_empty { (0, 1) } else { (least as i32, (most as i32).max(least as i32 + 1)) };
        let marks = (least..=most).map(|power| (10_f64.powi(power), format!("{}", 10_f64.powi(power)))).collect();
        Self { name: name.to_owned(), marks, is_logarithmic: true }
    }

    /// Where a value lies between the first mark, 0, and the last, 1.
    fn place(&self, value: f64) -> Option<f64> {
        let scale = |value: f64| if self.is_logarithmic { value.log10() } else { value };
        let (from, to) = (scale(self.marks.first()?.0), scale(self.marks.last()?.0));
        Some((scale(value) - from) / (to - from)).filter(|place| place.is_finite())
    }
}

/// Horizontal bars, in groups that have a scale of their own each: what they mean stands beside them.
pub(crate) fn bars(title: &str, servers: &[&str], groups: &[Group]) -> String {
    let (bar, gap) = (16.0, 14.0);
    let rows: usize = groups.iter().map(|group| group.bars.iter().flatten().count()).sum();
    let mut y = 60.0;
    let mut body = legend(servers);
    for group in groups {
        let most = group.bars.iter().flatten().map(|(value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let height = group.bars.iter().flatten().count() as f64 * bar;
        text(&mut body, LEFT - 8.0, y + height / 2.0 + 4.0, "end", &group.name);
        for (place, (value, label)) in group.bars.iter().enumerate().filter_map(|(at, bar)| Some((at, bar.as_ref()?))) {
            let length = (WIDTH - LEFT - 90.0) * value / most;
            let colour = COLOURS[place % COLOURS.len()];
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                bar - 2.0
            );
            text(&mut body, LEFT + length + 6.0, y + 11.0, "start", label);
            y += bar;
        }
        y += gap;
    }
    page(title, 70.0 + rows as f64 * bar + groups.len() as f64 * gap, &body)
}

/// Lines through points.
pub(crate) fn lines(title: &str, x: &Axis, y: &Axis, curves: &[Curve]) -> String {
    let (left, top, width, height) = (70.0, 60.0, WIDTH - 100.0, 300.0);
    let names: Vec<&str> = curves.iter().map(|curve| curve.name.as_str()).collect();
    let mut body = legend(&names);
    for (value, label) in &x.marks {
        let at = left + width * x.place(*value).unwrap_or_default();
        rule(&mut body, (at, top), (at, top + height));
        text(&mut body, at, top + height + 18.0, "middle", label);
    }
    for (value, label) in &y.marks {
        let at = top + height * (1.0 - y.place(*value).unwrap_or_default());
        rule(&mut body, (left, at), (left + width, at));
        text(&mut body, left - 8.0, at + 4.0, "end", label);
    }
    text(&mut body, left + width / 2.0, top + height + 40.0, "middle", &x.name);
    text(&mut body, left - 8.0, top - 12.0, "end", &y.name);
    for (place, curve) in curves.iter().enumerate() {
        let point = |&(across, up): &(f64, f64)| {
            Some(format!("{:.1},{:.1}", left + width * x.place(across)?, top + height * (1.0 - y.place(up)?)))
        };
        let points: Vec<String> = curve.points.iter().filter_map(point).collect();
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.join(" "),
            COLOURS[place % COLOURS.len()]
        );
    }
    page(title, top + height + 60.0, &body)
}

fn legend(names: &[&str]) -> String {
    let (mut body, mut x) = (String::new(), 16.0);
    for (place, name) in names.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let _ = writeln!(body, "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        text(&mut body, x + 18.0, 44.0, "start", name);
        x += 40.0 + 8.0 * name.chars().count() as f64;
    }
    body
}

fn rule(body: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        body,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#8888\" stroke-width=\"0.5\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(words));
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn page(title: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>{title}</title>\n\
         <style>text {{ fill: #222 }} @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} }}</style>\n\
         <text x=\"16\" y=\"22\" font-size=\"15\">{title}</text>\n{body}</svg>\n",
        title = escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share_of_the_longest() {
        let bars = vec![Some((25.0, "25.0".to_owned())), None, Some((100.0, "100.0".to_owned()))];
        let svg = super::bars("CPU", &["a", "b", "c"], &[Group { name: "x < y".to_owned(), bars }]);
        assert!(svg.contains("width=\"120.0\"") && svg.contains("width=\"480.0\""), "{svg}");
        assert!(svg.contains("x &lt; y") && svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn powers_of_ten_enclose_what_is_drawn() {
        let values = [0.25, 40.0, 0.0];
        let axis = Axis::powers("ms", values.into_iter());
        let marks: Vec<f64> = axis.marks.iter().map(|mark| mark.0).collect();
        assert_eq!(marks, [0.1, 1.0, 10.0, 100.0]);
        assert_eq!((axis.place(0.1), axis.place(100.0), axis.place(0.0)), (Some(0.0), Some(1.0), None));
        assert_eq!(Axis::powers("ms", [].into_iter()).marks.len(), 2);
    }

    #[test]
    fn a_line_goes_through_its_points() {
        let x = Axis {
            name: String::new(),
            marks: vec![(0.0, "0".to_owned()), (10.0, "10".to_owned())],
            is_logarithmic: false,
        };
        let y = Axis::powers("ms", [1.0, 100.0].into_iter());
        let curve = Curve { name: "a".to_owned(), points: vec![(0.0, 1.0), (5.0, 10.0), (10.0, 100.0), (10.0, 0.0)] };
        let svg = lines("t", &x, &y, &[curve]);
        assert!(svg.contains("points=\"70.0,360.0 400.0,210.0 730.0,60.0\""), "{svg}");
    }
}
