//! Golden text: what a command printed when somebody last looked at it and found it right.

use crate::{Fixture, fixtures};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Set to `1`, this makes a comparison rewrite the golden file. `cargo xtask golden` sets it.
pub const UPDATE: &str = "HYPERFERRY_UPDATE_GOLDEN";

/// Whether golden files are rewritten in this run.
pub fn updating() -> bool {
    std::env::var_os(UPDATE).is_some_and(|value| value == "1")
}

/// Compares `found` with the golden file, or writes it there when `update` is set.
pub fn compare(golden: &Path, found: &str, update: bool) -> Result<()> {
    if update {
        return fs::write(golden, found).with_context(|| format!("cannot write {}", golden.display()));
    }
    let wanted = fs::read_to_string(golden).unwrap_or_default();
    let Some((line, wanted, found)) = first_difference(&wanted, found) else {
        return Ok(());
    };
    bail!(
        "{}:{line}: the golden text differs\n  wanted: {wanted}\n  found:  {found}\n\
         look at the change; if it is right, run `cargo xtask golden` and commit the file",
        golden.display()
    )
}

fn first_difference<'a>(wanted: &'a str, found: &'a str) -> Option<(usize, &'a str, &'a str)> {
    const NOTHING: &str = "(end of text)";
    let mut wanted_lines = wanted.split('\n');
    let mut found_lines = found.split('\n');
    for number in 1.. {
        match (wanted_lines.next(), found_lines.next()) {
            (None, None) => break,
            (wanted, found) if wanted == found => {}
            (wanted, found) => return Some((number, wanted.unwrap_or(NOTHING), found.unwrap_or(NOTHING))),
        }
    }
    None
}

/// Compares `hyperferry inspect` of every fixture with `dump.txt` beside it, and tells all that differ.
pub fn check_dumps(hyperferry: &Path, update: bool) -> Result<()> {
    let mut failures = Vec::new();
    for fixture in [fixtures("xen")?, fixtures("qemu")?].concat() {
        if let Err(error) = check_dump(hyperferry, &fixture, update) {
            failures.push(format!("{}: {error:#}", fixture.name));
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn check_dump(hyperferry: &Path, fixture: &Fixture, update: bool) -> Result<()> {
    let mut inspect = Command::new(hyperferry);
    // Run inside the directory: the dump must not name the checkout.
    inspect.args(["inspect", "stream.zst"]).current_dir(&fixture.dir);
    let output = inspect.output().with_context(|| format!("cannot start {}", hyperferry.display()))?;
    if !output.status.success() {
        bail!("inspect ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    compare(&fixture.dir.join("dump.txt"), &String::from_utf8_lossy(&output.stdout), update)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_is_found_in_the_middle_and_at_the_end() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some((2, "b", "c")));
        assert_eq!(first_difference("a\n", "a\nb"), Some((2, "", "b")));
        assert_eq!(first_difference("", "a"), Some((1, "", "a")));
        assert_eq!(first_difference("a\nb", "a"), Some((2, "b", "(end of text)")));
    }

    #[test]
    fn failure_says_how_to_refresh() {
        let error = compare(Path::new("no such file"), "text\n", false).unwrap_err();
        assert!(error.to_string().contains("cargo xtask golden"), "{error}");
    }
}
