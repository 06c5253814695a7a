//! Whether `xl migrate GUEST HOST` finds us, without a command of its own.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "xl-name", worst: Severity::Note, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let remedy = "ln -s /usr/local/bin/hyperferry /usr/local/sbin/xl; or name the command: xl migrate -s '' GUEST \
                  'exec ssh HOST hyperferry receive'";
    match &facts.xl {
        None => {}
        Some(Some((path, true))) => say.ok(format!("{} is hyperferry", path.display())),
        Some(Some((path, false))) => {
            say.note(
                format!("{} is another program: `xl migrate GUEST HOST` would not find us", path.display()),
                remedy,
            );
        }
        Some(None) => say.note("there is no xl here: `xl migrate GUEST HOST` would not find us", remedy),
    }
}
