//! Whether the destination's QEMU tells its dialect (decision 0001): a trial without the guest.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "template", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    match facts.qemu().and_then(|qemu| qemu.template.as_ref()) {
        None => {}
        Some(Ok(machine)) => say.ok(format!("QEMU wrote an empty {machine} of the guest's shape")),
        Some(Err(why)) => {
            let remedy = "correct what it complains of; `hyperferry qemu-args` prints its arguments";
            say.refuse(format!("QEMU cannot make the guest's machine: {why}"), remedy);
        }
    }
}
