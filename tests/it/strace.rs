//! Reads what `strace` saw and says what a power failure would have taken back.
//!
//! The trace is made with `-f -y -s 4096 -o <file>` (see [`command`]): `-y` names the file behind each
//! descriptor, so no bookkeeping of descriptors is needed. A call that another thread's interrupts is in two
//! lines; it counts as writing from its first and as syncing only by what had happened before its first.

use std::{collections::BTreeMap, path::Path, process::Command};

/// The calls that [`unsynced_before`] wants to see.
const CALLS: &str = "trace=fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,openat,\
                     ftruncate,write,writev,pwrite64,pwritev,sendto";

/// `strace`, tracing what follows into `trace`. A missing `strace` fails the test here, saying what to do.
pub(crate) fn command(trace: &Path) -> Command {
    let found = Command::new("strace").arg("-V").output();
    assert!(found.is_ok(), "this test needs strace: apt-get install strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "4096", "-e", CALLS, "-o"]).arg(trace).arg("--");
    command
}

/// One call: the lines (from 0) at which it began and ended, its name, its arguments as text.
#[derive(Debug)]
struct Call {
    began: usize,
    ended: usize,
    name: String,
    arguments: String,
}

/// What had been changed and not been synced at the end of each marker: a write whose text `is_marker`
/// accepts, made after an answer was given. Only paths under `root` count, and none of a component that
/// begins with a dot. Each complaint names the marker.
///
/// # Panics
/// Without any marker: then nothing was looked at.
pub(crate) fn unsynced_before(trace: &str, root: &Path, is_marker: impl Fn(&str) -> bool) -> Vec<String> {
    let root = root.to_str().expect("a path of text");
    let mut complaints = Vec::new();
    let mut dirty: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut markers = 0;
    for call in calls(trace) {
        if matches!(call.name.as_str(), "write" | "writev" | "sendto") && is_marker(&call.arguments) {
            markers += 1;
            let open = dirty.iter().filter(|(path, _)| counts(root, path));
            complaints.extend(open.map(|(path, (_, why))| format!("{path}: {why}, before {}", call.arguments)));
            continue;
        }
        if call.name != "sendto" {
            apply(&call, &mut dirty);
        }
    }
    assert!(markers > 0, "no marker in the trace");
    complaints
}

/// Whether a path is of the layout: in the root (or the root itself), and not hidden.
fn counts(root: &str, path: &str) -> bool {
    let Some(rest) = path.strip_prefix(root) else { return false };
    (rest.is_empty() || rest.starts_with('/')) && !rest.split('/').any(|component| component.starts_with('.'))
}

fn apply(call: &Call, dirty: &mut BTreeMap<String, (usize, String)>) {
    let mut mark = |path: &str, why: &str| drop(dirty.insert(path.to_owned(), (call.ended, why.to_owned())));
    let named = quoted(&call.arguments);
    match call.name.as_str() {
        "write" | "writev" | "pwrite64" | "pwritev" | "ftruncate" => {
            if let Some(path) = descriptor(&call.arguments) {
                mark(&path, "written");
            }
        }
        "fsync" | "fdatasync" => {
            let Some(path) = descriptor(&call.arguments) else { return };
            if dirty.get(&path).is_some_and(|(changed, _)| *changed <= call.began) {
                dirty.remove(&path);
            }
        }
        "rename" | "renameat" | "renameat2" => {
            let [from, to] = named.as_slice() else { panic!("a rename of {named:?}") };
            // The bytes keep their state under the new name.
            if let Some(bytes) = dirty.remove(from) {
                dirty.insert(to.clone(), bytes);
            }
            for path in [from, to] {
                dirty.insert(parent(path), (call.ended, format!("changed by {} of {from} to {to}", call.name)));
            }
        }
        "openat" if !call.arguments.contains("O_CREAT") => {}
        _ => {
            let Some(path) = named.first() else { return };
            if call.name == "rmdir" {
                // An empty directory that comes back is no object that does; but what had been taken out of
                // it has to stay out.
                if let Some(emptied) = dirty.remove(path) {
                    dirty.insert(parent(path), emptied);
                }
            } else if call.name.starts_with("unlink") {
                dirty.remove(path);
                dirty.insert(parent(path), (call.ended, format!("changed by {} of {path}", call.name)));
            } else {
                mark(&parent(path), &format!("changed by {} of {path}", call.name));
            }
        }
    }
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or_else(String::new, |(parent, _)| parent.to_owned())
}

/// The path behind the first argument, as in `3</tmp/x>, "…"`.
fn descriptor(arguments: &str) -> Option<String> {
    let (number, rest) = arguments.split_once('<')?;
    let file = number.bytes().all(|byte| byte.is_ascii_digit()) && rest.starts_with('/');
    file.then(|| rest.split_once('>').map(|(path, _)| path.to_owned())).flatten()
}

/// The paths among the arguments. Ours hold nothing that strace would escape.
fn quoted(arguments: &str) -> Vec<String> {
    arguments.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The calls that succeeded, in the order in which they ended.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (began, text) = if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (at, first.to_owned()));
            continue;
        } else if rest.starts_with("<... ") {
            let Some((began, first)) = begun.remove(thread) else { continue };
            let Some((_, second)) = rest.split_once(" resumed>") else { continue };
            (began, format!("{first}{second}"))
        } else {
            (at, rest.to_owned())
        };
        // Signals and exits have no result.
        let Some((call, result)) = text.rsplit_once(" = ") else { continue };
        let Some((name, arguments)) = call.split_once('(') else { continue };
        if result.starts_with('-') {
            continue;
        }
        let arguments = arguments.trim_end().trim_end_matches(')').to_owned();
        calls.push(Call { began, ended: at, name: name.to_owned(), arguments });
    }
    calls
}

#[test]
fn what_is_missing_is_found() {
    let trace = |middle: &str| {
        format!(
            "1 openat(AT_FDCWD</>, \"/r/.tmp/x\", O_WRONLY|O_CREAT, 0666) = 3</r/.tmp/x>\n\
             1 write(3</r/.tmp/x>, \"bytes\", 5) = 5\n\
             1 fsync(3</r/.tmp/x>) = 0\n\
             1 mkdir(\"/r/a\", 0777) = 0\n\
             1 rename(\"/r/.tmp/x\", \"/r/a/x\") = 0\n{middle}\
             2 write(4</dev/null>, \"done\", 4) = 4\n"
        )
    };
    let look = |trace: &str| unsynced_before(trace, Path::new("/r"), |text| text.contains("\"done\""));
    let synced = trace("1 fsync(3</r/a>) = 0\n1 fsync(3</r>) = 0\n");
    assert_eq!(look(&synced), Vec::<String>::new());
    assert_eq!(look(&trace("")).len(), 2, "the directory and the one that it was made in");
    assert_eq!(look(&trace("1 fsync(3</r/a>) = 0\n")).len(), 1);
    assert_eq!(look(&trace("1 fsync(3</r/a>) = -1 EIO (error)\n1 fsync(3</r>) = 0\n")).len(), 1);
    assert_eq!(look(&synced.replacen("1 fsync(3</r/.tmp/x>) = 0\n", "", 1)).len(), 1, "the bytes");
    // A sync that began before the change may not have seen it.
    let early = "3 fsync(3</r/b> <unfinished ...>\n1 mkdir(\"/r/b/c\", 0777) = 0\n3 <... fsync resumed>) = 0\n";
    assert_eq!(look(&format!("{early}{synced}")).len(), 1);
}
