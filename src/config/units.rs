//! Spans of time, sizes, and what to log, as people write them.

use std::{ops::Deref, time::Duration};

use super::text::Written;

/// Milliseconds in each unit of time, greatest first, so that a span is shown in the greatest unit that
/// divides it.
const TIME: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Bytes in each unit of size, greatest first.
const SIZE: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// The levels that tracing knows; `off` among them.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Written for Duration {
    const NAME: &'static str = "Duration";
    const WANT: &'static str = "a span of time longer than zero, such as \"250ms\", \"5s\", \"2m\" or \"1h\"";

    fn read(text: &str) -> Option<Self> {
        let milliseconds = read_amount(text, &TIME)?;
        (milliseconds > 0).then(|| Self::from_millis(milliseconds))
    }

    fn write(&self) -> String {
        write_amount(u64::try_from(self.as_millis()).unwrap_or(u64::MAX), &TIME)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Written for Size {
    const NAME: &'static str = "Size";
    const WANT: &'static str = "a size such as \"512B\", \"64KiB\", \"256MiB\" or \"1GiB\"";

    fn read(text: &str) -> Option<Self> {
        read_amount(text, &SIZE).map(Self)
    }

    fn write(&self) -> String {
        write_amount(self.0, &SIZE)
    }
}

/// The most that something may be, if there is a most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// There is no limit.
    None,
    /// This many bytes, and no more.
    AtMost(Size),
}

impl Written for Ceiling {
    const NAME: &'static str = "Ceiling";
    const WANT: &'static str = "\"none\", or a size such as \"512B\", \"64KiB\", \"256MiB\" or \"1GiB\"";

    fn read(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::None);
        }
        Size::read(text).map(Self::AtMost)
    }

    fn write(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::AtMost(size) => size.write(),
        }
    }
}

/// What is logged: levels and `target=level` pairs, as tracing's `EnvFilter` takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl Deref for LogFilter {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Written for LogFilter {
    const NAME: &'static str = "LogFilter";
    const WANT: &'static str = "off, error, warn, info, debug or trace, or a list such as \"info,berth::api=debug\"";

    fn read(text: &str) -> Option<Self> {
        // A lone word that is no level would be taken for a target, and log it at `trace`: a typing
        // mistake in a level would be heard as "nothing, but everything of a module called that".
        let known = |directive: &str| directive.contains(['=', '[']) || LEVELS.contains(&directive.trim());
        let good = text.split(',').all(known) && tracing_subscriber::EnvFilter::try_new(text).is_ok();
        good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Digits and a unit, with nothing around or between.
fn read_amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (amount, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    amount.parse::<u64>().ok()?.checked_mul(*factor)
}

fn write_amount(amount: u64, units: &[(&str, u64)]) -> String {
    for (name, factor) in units {
        if amount >= *factor && amount.is_multiple_of(*factor) {
            return format!("{}{name}", amount / factor);
        }
    }
    format!("0{}", units.last().map_or("", |(name, _)| name))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, milliseconds, shown) in [
            ("250ms", 250, "250ms"),
            ("5s", 5_000, "5s"),
            ("60s", 60_000, "1m"),
            ("75s", 75_000, "75s"),
            ("24h", 86_400_000, "24h"),
            ("1500ms", 1_500, "1500ms"),
        ] {
            let span = Duration::read(text).unwrap();
            assert_eq!(span.as_millis(), milliseconds, "{text}");
            assert_eq!(span.write(), shown, "{text}");
        }
        for bad in ["", "5", "0s", "s", "-5s", " 5s", "5 s", "5d", "1h30m", "1.5s", "99999999999999999999s"] {
            assert_eq!(Duration::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, shown) in [
            ("0B", 0, "0B"),
            ("512B", 512, "512B"),
            ("1024B", 1024, "1KiB"),
            ("256MiB", 256 << 20, "256MiB"),
            ("1025KiB", 1025 << 10, "1025KiB"),
            ("3GiB", 3 << 30, "3GiB"),
        ] {
            let size = Size::read(text).unwrap();
            assert_eq!(size, Size(bytes), "{text}");
            assert_eq!(size.write(), shown, "{text}");
        }
        for bad in ["", "5", "5MB", "5mib", "-1B", "1 KiB", "99999999999GiB"] {
            assert_eq!(Size::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_misspelt_level_is_not_a_target() {
        for good in ["info", "off", "info,berth::api=debug", "berth=trace", "warn,[push]=debug"] {
            assert!(LogFilter::read(good).is_some(), "{good}");
        }
        for bad in ["", "inof", "info,", "info,berth=loud", "INFO "] {
            assert!(LogFilter::read(bad).is_none(), "{bad}");
        }
    }
}
