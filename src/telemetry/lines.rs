//! The log's lines on their way to the system: those of requests together, all others at once.
//!
//! A line of the access log waits for at most [`LINGER`] beside those that come meanwhile, so that under load one write
//! takes hundreds of them. Whoever finds the buffer full writes it out: a slow reader of the log slows down the requests, and no
//! line is dropped. What this does not know is what a line looks like.
//!
//! Measured by manifests that were asked for by tag over 16 connections (`perf record`, a log in a file): a write for each
//! line was 7.9 % of the CPU, and is 1.7 %.

use std::{
    fmt, io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use super::logs::ACCESS;

/// For how long a request's line may wait for others, at most. A process that is killed loses no more than that.
const LINGER: Duration = Duration::from_millis(5);

/// How many bytes may wait: those of some 600 requests.
const ROOM: usize = 256 << 10;

/// Where lines go, in the order in which they come. Clones are the same.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when the first line comes and the thread sleeps.
    has_come: Condvar,
    out: Mutex<Out>,
}

struct Waiting {
    bytes: Vec<u8>,
    thread: Thread,
}

/// What the thread does that writes what waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// There is none yet, as nothing has waited yet.
    Missing,
    /// It writes, or will within [`LINGER`].
    Awake,
    /// It wants to be told.
    Asleep,
}

struct Out {
    sink: Box<dyn io::Write + Send>,
    /// Empty but while it is written; kept for its memory.
    bytes: Vec<u8>,
}

impl Lines {
    /// Lines to `sink`.
    pub(super) fn new(sink: impl io::Write + Send + 'static) -> Self {
        let waiting = Mutex::new(Waiting { bytes: Vec::new(), thread: Thread::Missing });
        let out = Mutex::new(Out { sink: Box::new(sink), bytes: Vec::new() });
        Self(Arc::new(Shared { waiting, has_come: Condvar::new(), out }))
    }

    /// Writes what waits, and returns when the system has it.
    pub(super) fn flush(&self) {
        // Held from the exchange to the end of the write, so that lines leave in the order in which they came.
        let mut out = lock(&self.0.out);
        let Out { sink, bytes } = &mut *out;
        mem::swap(bytes, &mut lock(&self.0.waiting).bytes);
        // There is nowhere to say that the log can't be written.
        let _ = sink.write_all(bytes);
        bytes.clear();
    }

    fn write_now(&self, line: &[u8]) {
        lock(&self.0.waiting).bytes.extend_from_slice(line);
        self.flush();
    }

    fn write_soon(&self, line: &[u8]) {
        let mut waiting = lock(&self.0.waiting);
        while waiting.bytes.len() + line.len() > ROOM && !waiting.bytes.is_empty() {
            drop(waiting);
            self.flush();
            waiting = lock(&self.0.waiting);
        }
        waiting.bytes.extend_from_slice(line);
        let before = mem::replace(&mut waiting.thread, Thread::Awake);
        drop(waiting);
        match before {
            Thread::Awake => {}
            Thread::Asleep => self.0.has_come.notify_one(),
            Thread::Missing => self.begin(),
        }
    }

    /// Has a thread write what waits, from now on.
    fn begin(&self) {
        let lines = self.clone();
        let begun = thread::Builder::new().name("log".to_owned()).spawn(move || lines.keep_writing());
        if begun.is_err() {
            // The next line tries again.
            lock(&self.0.waiting).thread = Thread::Missing;
            self.flush();
        }
    }

    fn keep_writing(&self) {
        loop {
            let mut waiting = lock(&self.0.waiting);
            while waiting.bytes.is_empty() {
                waiting.thread = Thread::Asleep;
                waiting = self.0.has_come.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            waiting.thread = Thread::Awake;
            drop(waiting);
            self.flush();
            thread::sleep(LINGER);
        }
    }
}

/// What panics under one of these locks leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

/// The way of one line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    lines: &'a Lines,
    may_wait: bool,
}

impl io::Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.may_wait {
            self.lines.write_soon(line);
        } else {
            self.lines.write_now(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, may_wait: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { lines: self, may_wait: event.target() == ACCESS }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::mpsc::{Receiver, SyncSender, sync_channel},
    };

    use super::*;

    /// A sink whose every write the test takes, one after the other.
    struct Taken(SyncSender<Vec<u8>>);

    impl Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines, Receiver<Vec<u8>>) {
        let (sender, receiver) = sync_channel(0);
        (Lines::new(Taken(sender)), receiver)
    }

    fn take(writes: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(writes.recv().expect("a write")).expect("text")
    }

    #[test]
    fn what_comes_during_a_write_goes_out_in_the_next() {
        let (lines, writes) = lines();
        lines.write_soon(b"1 ");
        // The thread has taken the first line, or will: either way nothing is out before it is taken here.
        let mut seen = take(&writes);
        for number in 2..100 {
            lines.write_soon(format!("{number} ").as_bytes());
        }
        let mut count = 1;
        while !seen.ends_with(" 99 ") {
            seen += &take(&writes);
            count += 1;
        }
        let wanted: String = (1..100).map(|number| format!("{number} ")).collect();
        assert_eq!(seen, wanted);
        assert!(count < 50, "{count} writes");
    }

    #[test]
    fn what_may_not_wait_takes_along_what_waits() {
        let (lines, writes) = lines();
        lines.write_soon(b"first ");
        let mut seen = take(&writes);
        lines.write_soon(b"second ");
        let (other, done) = (lines.clone(), sync_channel(0));
        thread::spawn(move || {
            other.write_now(b"third ");
            done.0.send(()).expect("somebody waits");
        });
        while !seen.ends_with("third ") {
            seen += &take(&writes);
        }
        assert_eq!(seen, "first second third ");
        done.1.recv().expect("it is done");
    }

    #[test]
    fn a_full_buffer_makes_whoever_comes_wait_and_loses_nothing() {
        let (lines, writes) = lines();
        let line = [b'x'; 1000];
        let count = 3 * ROOM / line.len();
        let writer = thread::spawn(move || {
            (0..count).for_each(|_| lines.write_soon(&line));
            lines.flush();
        });
        let mut seen = 0;
        while seen < count * line.len() {
            let bytes = writes.recv().expect("a write").len();
            assert!(bytes <= ROOM, "{bytes}");
            seen += bytes;
        }
        drop(writes);
        assert!(writer.join().is_ok());
    }
}
