//! Memory that the guest may have and was not given.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "balloon", worst: Severity::Warning, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let kib = |key: &str| facts.key(key).and_then(|value| value.parse::<u64>().ok());
    let (most, target) = (kib("memory/static-max"), kib("memory/target"));
    let video = kib("memory/videoram").unwrap_or(0);
    match most.zip(target) {
        Some((most, target)) if target + video < most => {
            let reason = format!(
                "the guest has {} MiB of the {} MiB that it may have: a balloon driver holds the rest, or it was never given",
                target >> 10,
                most >> 10
            );
            say.warn(reason, "xl mem-set it to its maximum, or boot it with memory=maxmem, before the move");
        }
        Some(_) => say.ok("the guest has all of its memory"),
        None => say.note("xenstore does not tell how much memory the guest has", ""),
    }
}
