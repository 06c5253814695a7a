//! Whether there is room for the guest.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "host-memory", worst: Severity::Warning, judge };

/// What QEMU itself takes beside its guest: 60 to 100 MiB were seen.
const QEMU: u64 = 128 << 20;

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let (Some(guest), Some(available)) = (&facts.guest, facts.memory) else { return };
    let wanted = guest.vm.memory.size() + guest.vm.config.video_memory + QEMU;
    if wanted <= available {
        return say.ok(format!("{} MiB of {} MiB available", wanted >> 20, available >> 20));
    }
    let reason = format!(
        "the guest and its QEMU want {} MiB, and {} MiB are available",
        wanted >> 20,
        available >> 20
    );
    say.warn(reason, "make room: end or move other guests, or use another host");
}
