//! Where each step of a move is written down.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "journal", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    match &facts.journal {
        None => {}
        Some((directory, Ok(()))) => say.ok(directory.display().to_string()),
        Some((_, Err(why))) => {
            say.refuse(
                format!("the journal cannot be written: {why}"),
                "name another place with --journal DIR",
            );
        }
    }
}
