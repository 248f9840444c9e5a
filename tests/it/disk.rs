//! A disk of a test's own, small enough to be filled. Mounting one takes root.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, process::Command};

use tempfile::TempDir;

use crate::berth::run;

/// A file system in memory of a given size, mounted for as long as this lives. It takes root.
#[derive(Debug)]
pub(crate) struct Disk(TempDir);

impl Disk {
    pub(crate) fn mount(mebibytes: u32) -> Self {
        let directory = TempDir::new().unwrap();
        let size = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()));
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn remount(&self, option: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(self.path()));
    }

    /// How many bytes files take on it.
    pub(crate) fn used(&self) -> u64 {
        let used = run(Command::new("du").arg("-sB1").arg(self.path()));
        used.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The server is gone by now; a mount that stays would outlive the test.
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}
