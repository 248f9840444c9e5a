//! A server that asks who comes, for the tests of clients that log in.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use tempfile::TempDir;

use crate::berth::{Berth, Setup};

/// The password of everybody.
pub(crate) const SECRET: &str = "correct horse";

/// A server whose user ann writes in `team/**`, and with whom nobody else may do anything; and what it reads.
pub(crate) fn server() -> (Berth, TempDir) {
    let folder = TempDir::new().unwrap();
    let users = folder.path().join("users");
    fs::write(&users, format!("ann:{}\n", bcrypt::hash(SECRET, 4).unwrap())).unwrap();
    let berth = Setup::of(&[
        ("BERTH_AUTH__HTPASSWD", users.to_str().unwrap()),
        ("BERTH_AUTH__RULES__ANN__WHO", "user:ann"),
        ("BERTH_AUTH__RULES__ANN__ROLE", "writer"),
        ("BERTH_AUTH__RULES__ANN__REPOSITORIES", "team/**"),
    ]);
    (berth.start(), folder)
}
