//! Hyper-V enlightenments in use.

use super::{Facts, needs_hvmctx};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "viridian", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    match &facts.context {
        None => needs_hvmctx(say),
        Some(context) if context.viridian => {
            let reason = "the guest uses Hyper-V enlightenments (viridian)";
            say.refuse(reason, "boot it with viridian=0 before the move");
        }
        Some(_) => say.ok("no Hyper-V enlightenments"),
    }
}
