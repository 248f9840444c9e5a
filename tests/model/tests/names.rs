//! The models' steps are the code's: each function that a step names is in the file where it is said to be.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

const ACTIONS: [&str; 2] = ["src/tags/action.rs", "src/blobs/action.rs"];

/// What stands between backquotes.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn each_step_names_functions_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for actions in ACTIONS {
        let actions = fs::read_to_string(root.join(actions)).unwrap();
        for line in actions.lines().filter(|line| line.trim_start().starts_with("///")) {
            let mut code: Option<String> = None;
            for quoted in quoted(line) {
                match (quoted.ends_with(".rs"), &code) {
                    (true, _) => code = Some(fs::read_to_string(root.join("../../src").join(quoted)).unwrap()),
                    (false, Some(code)) => {
                        assert!(
                            code.contains(&format!("fn {quoted}(")) || code.contains(&format!("fn {quoted}<")),
                            "{line}"
                        );
                        named += 1;
                    }
                    (false, None) => {}
                }
            }
        }
    }
    assert!(named > 50, "only {named} names were found");
}
