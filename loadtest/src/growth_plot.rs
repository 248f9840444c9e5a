//! A plot of some lines over sizes that grow tenfold: SVG, by hand. The height is linear and begins at zero, so that
//! what looks flat is flat.

/// The whole picture, in pixels.
const SIZE: (f64, f64) = (720.0, 360.0);

/// What is left around the lines: left, right, top, bottom. The names of the lines are on the right.
const MARGIN: (f64, f64, f64, f64) = (60.0, 180.0, 40.0, 40.0);

/// Told apart by those who don't see all colours: from the palette of Okabe and Ito.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// How many horizontal lines there are to read values by, at most.
const STEPS: f64 = 5.0;

/// One line, with its points from left to right.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws them.
pub(crate) fn svg(title: &str, lines: &[Line<'_>]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let left = all().map(|point| point.0.log10()).fold(f64::INFINITY, f64::min);
    let right = all().map(|point| point.0.log10()).fold(f64::NEG_INFINITY, f64::max).max(left + 1.0);
    let step = round_up(all().map(|point| point.1).fold(0.0, f64::max) / STEPS);
    let frame = Frame { left, right, top: step * STEPS };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{}\" y=\"20\" font-size=\"14\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        MARGIN.0,
        escaped(title)
    );
    for place in 0..=STEPS as usize {
        text += &frame.height_line(step * place as f64);
    }
    let mut sizes: Vec<f64> = all().map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    sizes.iter().for_each(|&size| text += &frame.size_mark(size));
    for (place, line) in lines.iter().enumerate() {
        text += &frame.line(line, COLOURS[place % COLOURS.len()], place);
    }
    text + "</svg>\n"
}

/// Where values are in the picture.
struct Frame {
    /// The logarithms of the least and the largest size.
    left: f64,
    right: f64,
    /// The value at the top.
    top: f64,
}

impl Frame {
    fn x(&self, size: f64) -> f64 {
        MARGIN.0 + (size.log10() - self.left) / (self.right - self.left) * (SIZE.0 - MARGIN.0 - MARGIN.1)
    }

    fn y(&self, value: f64) -> f64 {
        SIZE.1 - MARGIN.3 - value / self.top * (SIZE.1 - MARGIN.2 - MARGIN.3)
    }

    fn height_line(&self, value: f64) -> String {
        let (y, from, to) = (self.y(value), MARGIN.0, SIZE.0 - MARGIN.1);
        let number = (value * 1e6).round() / 1e6;
        format!(
            "<path d=\"M{from} {y:.1}H{to}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{number}</text>\n",
            from - 6.0,
            y + 4.0
        )
    }

    fn size_mark(&self, size: f64) -> String {
        let (x, y) = (self.x(size), SIZE.1 - MARGIN.3 + 18.0);
        format!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>\n", brief(size))
    }

    fn line(&self, line: &Line<'_>, colour: &str, place: usize) -> String {
        let at = |&(size, value): &(f64, f64)| (self.x(size), self.y(value));
        let points: Vec<_> = line.points.iter().map(at).collect();
        let joined: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dots: String = points
            .iter()
            .map(|(x, y)| format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"))
            .collect();
        let (x, y) = (SIZE.0 - MARGIN.1 + 12.0, MARGIN.2 + 12.0 + 18.0 * place as f64);
        format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>{dots}\
             <text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>\n",
            joined.join(" "),
            escaped(line.name)
        )
    }
}

/// The next of 1, 2, 5, 10, 20, …; 1 for nothing at all.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * unit).find(|&step| step >= value).unwrap_or(10.0 * unit)
}

/// A size in few letters: bytes are powers of two, all else of ten.
pub(crate) fn brief(size: f64) -> String {
    let binary = [(30, "GiB"), (20, "MiB"), (10, "KiB")].map(|(bits, unit)| (f64::from(1_u32 << bits), unit));
    let even = binary.into_iter().find(|(unit, _)| size >= *unit && size % 1024.0 == 0.0);
    match even {
        Some((unit, name)) => format!("{} {name}", size / unit),
        None => thousands(size as u64),
    }
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_sizes_brief() {
        assert_eq!(thousands(7), "7");
        assert_eq!((round_up(0.0), round_up(3.0), round_up(51.0), round_up(0.2)), (1.0, 5.0, 100.0, 0.2));
        assert_eq!(
            (brief(1000.0), brief(65536.0), brief(5_368_709_120.0)),
            ("1,000".into(), "64 KiB".into(), "5 GiB".into())
        );
    }

    #[test]
    fn every_line_is_there_and_nothing_is_out_of_the_picture() {
        let lines = [
            Line { name: "a < b", points: vec![(1000.0, 10.0), (10_000.0, 12.0)] },
            Line { name: "c", points: vec![(1000.0, 0.0)] },
        ];
        let text = svg("R&D", &lines);
        assert_eq!((text.matches("<polyline").count(), text.matches("<circle").count()), (2, 3));
        assert!(
            text.contains("a &lt; b") && text.contains("R&amp;D") && !text.contains("NaN") && !text.contains("inf")
        );
    }
}
