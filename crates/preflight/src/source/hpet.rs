//! Whether the HPET counts, read from the running domain: a stream tells it only behind the guest's suspension.

use super::{Facts, needs_hvmctx};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "hpet", worst: Severity::Warning, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(context) = &facts.context else { return needs_hvmctx(say) };
    if !context.clocks().hpet {
        return say.ok("the HPET stands still, or is not there");
    }
    let remedy = "use a destination with KVM and the platform shim beside hyperferry; or boot the guest with hpet=disable \
                  (Linux) or hpet=0 in its configuration";
    say.warn("the HPET counts, at a rate that QEMU's own HPET does not have", remedy);
}
