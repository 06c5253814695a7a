//! The version of Xen: what its streams carry.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "toolstack", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let number = |key: &str| facts.info.get(key).and_then(|value| value.parse::<u32>().ok());
    let Some(version) = number("xen_major").zip(number("xen_minor")) else {
        return say.note("`xl info` does not tell Xen's version", "");
    };
    let (major, minor) = version;
    if version < (4, 6) {
        let reason = format!("Xen {major}.{minor} writes streams of a form that is not read");
        say.refuse(reason, "move the guest to Xen 4.14 or newer first");
    } else if version < (4, 14) {
        let reason = format!("Xen {major}.{minor} does not tell which CPU features it showed to the guest");
        say.warn(reason, "name the CPU model with --cpu, the one the guest was booted on");
    } else {
        say.ok(format!("Xen {major}.{minor}"));
    }
}
