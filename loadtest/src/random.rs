//! Numbers that look random and are the same in every run: what is asked must not differ from server to server.

/// splitmix64, which needs no crate.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// From 0 up to, not including, 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 up to, not including, `count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.share() * count as f64) as usize
    }
}

/// Things of which few are asked for often: the n-th with a weight of 1/n, as is found of the popularity of images.
#[derive(Debug)]
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    /// Of so many things.
    pub(crate) fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|place| {
            sum += 1.0 / place as f64;
            sum
        });
        Self(sums.collect())
    }

    /// One of them, counted from 0.
    pub(crate) fn pick(&self, random: &mut Random) -> usize {
        let at = random.share() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|&sum| sum <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let (mut one, mut same, mut other) = (Random::new(1), Random::new(1), Random::new(2));
        assert_eq!(one.word(), same.word());
        assert_ne!(one.word(), other.word());
        assert!((0..1000).all(|_| one.below(7) < 7));
    }

    #[test]
    fn the_first_is_asked_for_twice_as_often_as_the_second() {
        let (zipf, mut random, mut counts) = (Zipf::new(100), Random::new(3), [0_u32; 100]);
        (0..100_000).for_each(|_| counts[zipf.pick(&mut random)] += 1);
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert!(counts[99] > 0);
    }
}
