//! What the system says of processes and of itself, from `/proc`; Linux only.
//!
//! It must not ask a server anything: a number that the measured program computes is no measurement of it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result};

/// The CPU time that a process has used so far, user and system, in seconds. The system counts in ticks of
/// 10 ms, so anything shorter than a second is read with care.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    ticks(&stat).map(|ticks| ticks as f64 / rustix::param::clock_ticks_per_second() as f64).context("/proc/PID/stat")
}

/// utime and stime: fields 14 and 15. The second field is the program's name in parentheses and may hold
/// anything, so fields are counted from its end.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The CPU time that this process has used so far, in seconds.
pub(crate) fn own_cpu_seconds() -> Result<f64> {
    cpu_seconds(std::process::id())
}

/// The CPU time that all cores together have spent on something, in seconds: everything in the first line of
/// `/proc/stat` but idling and waiting for disks. Time that the hypervisor took away (`steal`) is in it.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks: Option<Vec<u64>> = stat
        .lines()
        .next()
        .map(|line| line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect());
    // user nice system idle iowait irq softirq steal; what follows is in user and nice already.
    let ticks = ticks.filter(|ticks| ticks.len() >= 8).context("/proc/stat")?;
    let busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
    Ok(busy as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process in MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// What is resident now.
    pub(crate) resident: f64,
    /// The most that was.
    pub(crate) peak: f64,
}

/// What memory a process has.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let field = |name| mebibytes(&status, name).with_context(|| format!("{name} in /proc/PID/status"));
    Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// A line such as `VmRSS:    1234 kB`.
fn mebibytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes / 1024.0)
}

/// What the files below a directory take on the disk, in bytes. What is removed meanwhile doesn't count.
pub(crate) fn disk_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_bytes_of(&found) + disk_bytes(&entry.path()),
        Ok(found) => disk_bytes_of(&found),
        Err(_) => 0,
    });
    bytes.sum()
}

/// What one file takes, in bytes. The system counts in blocks of 512, whatever the file system's own are.
pub(crate) fn disk_bytes_of(file: &fs::Metadata) -> u64 {
    file.blocks() * 512
}

/// How many tasks ran or wanted to, averaged over the last minute.
pub(crate) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().and_then(|first| first.parse().ok()).context("/proc/loadavg")
}

/// The first value of a field of `/proc/cpuinfo` or `/proc/meminfo`, as it is written there.
pub(crate) fn field(file: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("{name} in {file}"))?;
    Ok(line.split_once(':').map_or("", |(_, value)| value).trim().to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 1 2 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn memory_is_in_mebibytes() {
        assert_eq!(mebibytes("VmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\n", "VmRSS:"), Some(2.0));
    }

    #[test]
    fn work_of_our_own_is_seen() {
        let before = (own_cpu_seconds().unwrap(), busy_seconds().unwrap());
        while own_cpu_seconds().unwrap() < before.0 + 0.05 {}
        assert!(busy_seconds().unwrap() > before.1);
    }
}
