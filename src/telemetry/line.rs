//! An event of the log as one line: text for people, or JSON for machines.
//!
//! It is our own because every request ends in such a line of some twenty fields: tracing-subscriber's formatters took
//! a quarter of the instructions of a manifest by tag.

use std::{
    cell::Cell,
    fmt::{self, Write as _},
    io::Write as _,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::MakeWriter,
    layer::{Context, Layer},
};

use super::logs::Format;

/// Writes each event as a line.
#[derive(Debug)]
pub(super) struct LineLayer<W> {
    format: Format,
    writer: W,
}

impl<W> LineLayer<W> {
    /// Lines of this format, to `writer`, each in one write.
    pub(super) fn new(format: Format, writer: W) -> Self {
        Self { format, writer }
    }
}

thread_local! {
    /// Taken while a line is written. A value that logs while it is being logged finds an empty one.
    static LINE: Cell<Line> = Cell::default();
}

impl<S, W> Layer<S> for LineLayer<W>
where
    S: Subscriber,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // A thread that ends has none left.
        let mut line = LINE.try_with(Cell::take).unwrap_or_default();
        line.write(self.format, event.metadata(), now(), |fields| event.record(fields));
        // There is nowhere to say that the log can't be written.
        let _ = self.writer.make_writer_for(event.metadata()).write_all(&line.bytes);
        let _ = LINE.try_with(|kept| kept.set(line));
    }
}

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A line, kept for its memory, and for its second, which the next is likely to share.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    second: Option<(u64, String)>,
}

impl Line {
    /// Has what `record` tells, and a newline at its end.
    fn write(&mut self, format: Format, event: &Metadata<'_>, at: Duration, record: impl FnOnce(&mut Fields<'_>)) {
        self.bytes.clear();
        let (target, level) = (event.target(), event.level().as_str());
        match format {
            Format::Text => {
                self.push_time(at);
                self.push([" ".repeat(6 - level.len()).as_str(), level, " ", target, ":"]);
                record(&mut Fields { format, bytes: &mut self.bytes });
                self.push(["\n"]);
            }
            Format::Json => {
                self.push([r#"{"timestamp":""#]);
                self.push_time(at);
                self.push([r#"","level":""#, level, r#"""#]);
                record(&mut Fields { format, bytes: &mut self.bytes });
                self.push([r#","target":""#, target, "\"}\n"]);
            }
        }
    }

    fn push<'a>(&mut self, parts: impl IntoIterator<Item = &'a str>) {
        parts.into_iter().for_each(|part| self.bytes.extend_from_slice(part.as_bytes()));
    }

    /// As RFC 3339 has it, with microseconds.
    fn push_time(&mut self, at: Duration) {
        let seconds = at.as_secs();
        let (_, text) = match &mut self.second {
            Some(second) if second.0 == seconds => second,
            second => second.insert((seconds, date_and_time(seconds))),
        };
        self.bytes.extend_from_slice(text.as_bytes());
        let mut digits = *b".000000Z";
        let mut left = at.subsec_micros();
        for digit in digits[1..7].iter_mut().rev() {
            *digit += (left % 10) as u8;
            left /= 10;
        }
        self.bytes.extend_from_slice(&digits);
    }
}

fn date_and_time(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0));
    at.unwrap_or_default().format("%Y-%m-%dT%H:%M:%S").to_string()
}

/// Takes an event's fields into a line.
struct Fields<'a> {
    format: Format,
    bytes: &'a mut Vec<u8>,
}

impl Fields<'_> {
    /// Whether it is the message, which has no name in text.
    fn begin(&mut self, field: &Field) -> bool {
        let name = field.name().strip_prefix("r#").unwrap_or(field.name());
        let is_message = self.format == Format::Text && name == "message";
        let (before, after) = match self.format {
            Format::Text if is_message => (" ", ""),
            Format::Text => (" ", "="),
            Format::Json => (",\"", "\":"),
        };
        self.bytes.extend_from_slice(before.as_bytes());
        if !is_message {
            self.bytes.extend_from_slice(name.as_bytes());
        }
        self.bytes.extend_from_slice(after.as_bytes());
        is_message
    }

    /// A number or a bool; what JSON has no word for is `null`.
    fn record_plain(&mut self, field: &Field, value: impl Serialize) {
        self.begin(field);
        // Memory takes all that is written to it.
        let _ = serde_json::to_writer(&mut *self.bytes, &value);
    }

    fn record_text(&mut self, is_quoted: bool, write: impl FnOnce(&mut Escaped<'_>) -> fmt::Result) {
        let quote: &[u8] = if is_quoted { b"\"" } else { b"" };
        self.bytes.extend_from_slice(quote);
        // A value that can't write itself is as far in the line as it came.
        let _ = write(&mut Escaped { bytes: self.bytes, is_quoted });
        self.bytes.extend_from_slice(quote);
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record_plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record_plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record_plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.record_plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let is_message = self.begin(field);
        self.record_text(!is_message, |text| text.write_str(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        self.record_text(self.format == Format::Json, |text| write!(text, "{value:?}"));
    }
}

/// Takes text so that it can end neither its line nor its quotes, nor command a terminal: by JSON's escapes.
struct Escaped<'a> {
    bytes: &'a mut Vec<u8>,
    is_quoted: bool,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Self { bytes, is_quoted } = self;
        let needs_escape = |byte: &u8| !matches!(byte, b' '..=b'~') || *is_quoted && matches!(byte, b'"' | b'\\');
        if !text.as_bytes().iter().any(needs_escape) {
            bytes.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        for character in text.chars() {
            match character {
                '"' | '\\' if *is_quoted => bytes.extend([b'\\', character as u8]),
                '\n' => bytes.extend_from_slice(b"\\n"),
                '\r' => bytes.extend_from_slice(b"\\r"),
                '\t' => bytes.extend_from_slice(b"\\t"),
                _ if character.is_control() => {
                    let _ = write!(bytes, "\\u{:04x}", u32::from(character));
                }
                _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing::subscriber::with_default;

    use super::{super::logs::subscriber, *};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `log` leaves, without the time.
    fn lines(format: Format, log: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let writer = kept.clone();
        with_default(subscriber(format, "info", move || writer.clone()).expect("a filter"), log);
        let text = String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("text");
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        let without_time = |line: &str| match format {
            Format::Text => line.split_once(' ').expect("a time").1.to_owned(),
            Format::Json => line.to_owned(),
        };
        text.lines().map(without_time).collect()
    }

    fn log_one() {
        let none: Option<&str> = None;
        let (list, r#type) = (["a"], "t");
        tracing::warn!(target: "part", text = "a \"b\"", n = 7, below = -1, half = 0.5, is = true, none, shown = %1.25,
            seen = ?list, r#type, "it {}", "went");
        tracing::debug!("not this");
    }

    #[test]
    fn people_read_text() {
        let expected =
            r#" WARN part: it went text="a \"b\"" n=7 below=-1 half=0.5 is=true shown=1.25 seen=["a"] type="t""#;
        assert_eq!(lines(Format::Text, log_one), [expected]);
    }

    #[test]
    fn machines_read_json() {
        let lines = lines(Format::Json, log_one);
        let mut line: Value = serde_json::from_str(&lines[0]).expect("JSON");
        let time = line["timestamp"].take();
        assert!(DateTime::parse_from_rfc3339(time.as_str().expect("text")).is_ok(), "{time}");
        let expected = json!({
            "timestamp": null, "level": "WARN", "message": "it went", "text": "a \"b\"", "n": 7, "below": -1, "half": 0.5,
            "is": true, "shown": "1.25", "seen": "[\"a\"]", "type": "t", "target": "part",
        });
        assert_eq!((line, lines.len()), (expected, 1));
    }

    #[test]
    fn no_value_ends_its_line_or_commands_a_terminal() {
        const EVIL: &str = "a\nb\r\t\"\\ \u{1b}[31m \u{85} ä";
        let log = || tracing::error!(quoted = EVIL, shown = %EVIL, "{EVIL}");
        let escaped = r#"a\nb\r\t"\ \u001b[31m \u0085 ä"#;
        let expected =
            format!(r#"ERROR {}: {escaped} quoted="a\nb\r\t\"\\ \u001b[31m \u0085 ä" shown={escaped}"#, module_path!());
        assert_eq!(lines(Format::Text, log), [expected]);
        let line = lines(Format::Json, log).concat();
        assert!(!line.chars().any(char::is_control), "{line}");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        for field in ["message", "quoted", "shown"] {
            assert_eq!(line[field], EVIL, "{field}");
        }
    }

    #[test]
    fn times_are_to_the_microsecond() {
        let time = |line: &mut Line, at| {
            line.bytes.clear();
            line.push_time(at);
            String::from_utf8(line.bytes.clone()).expect("text")
        };
        let mut line = Line::default();
        assert_eq!(time(&mut line, Duration::ZERO), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(&mut line, Duration::new(1_700_000_000, 123_456_999)), "2023-11-14T22:13:20.123456Z");
        assert_eq!(time(&mut line, Duration::new(1_700_000_000, 7_000)), "2023-11-14T22:13:20.000007Z");
        assert_eq!(time(&mut line, Duration::new(1_700_000_001, 0)), "2023-11-14T22:13:21.000000Z");
    }
}
