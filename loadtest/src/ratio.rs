//! By how much one thing differs from another that was measured beside it, and how sure that is.

use crate::random::Random;

/// How often the rounds are drawn anew.
const DRAWS: usize = 10_000;

/// A ratio with the interval in which it lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) middle: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Ratio {
    /// `head` to `base`, of rounds in which both were measured one after the other: the geometric mean of the
    /// rounds' ratios, and what it would have been if chance had picked the rounds otherwise (a bootstrap of the
    /// pairs). Nothing without a round in which both are positive.
    pub(crate) fn of(base: &[f64], head: &[f64]) -> Option<Self> {
        let pairs = base.iter().zip(head).filter(|(base, head)| **base > 0.0 && **head > 0.0);
        let logs: Vec<f64> = pairs.map(|(base, head)| (head / base).ln()).collect();
        let middle = mean(logs.iter().copied())?;
        let mut random = Random::new(1);
        let mut means: Vec<f64> = (0..DRAWS)
            .filter_map(|_| {
                mean((0..logs.len()).map(|_| logs[random.below(logs.len())]).collect::<Vec<_>>().into_iter())
            })
            .collect();
        means.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| means[((DRAWS - 1) as f64 * share).round() as usize].exp();
        Some(Self { middle: middle.exp(), least: at(0.025), most: at(0.975) })
    }

    /// Whether it is more than chance.
    pub(crate) fn is_a_difference(self) -> bool {
        self.least > 1.0 || self.most < 1.0
    }

    /// As a table has it.
    pub(crate) fn text(self) -> String {
        format!("{:.3} ({:.3}–{:.3})", self.middle, self.least, self.most)
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_half_is_half() {
        let ratio = Ratio::of(&[10.0, 20.0, 40.0], &[5.0, 10.0, 20.0]).unwrap();
        assert!((ratio.middle - 0.5).abs() < 1e-9 && (ratio.least - ratio.most).abs() < 1e-9, "{ratio:?}");
        assert!(ratio.is_a_difference());
    }

    #[test]
    fn noise_is_no_difference() {
        let base = [10.0, 11.0, 9.0, 10.5, 9.5, 10.0];
        let head = [10.4, 10.2, 9.6, 10.1, 9.9, 9.8];
        let ratio = Ratio::of(&base, &head).unwrap();
        assert!(!ratio.is_a_difference() && ratio.least < ratio.middle && ratio.middle < ratio.most, "{ratio:?}");
        assert_eq!(ratio, Ratio::of(&base, &head).unwrap());
    }

    #[test]
    fn nothing_has_no_ratio() {
        assert_eq!(Ratio::of(&[], &[]), None);
        assert_eq!(Ratio::of(&[0.0], &[1.0]), None);
    }
}
