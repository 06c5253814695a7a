//! The guest's HPET, where its host told that it counts.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "hpet", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(guest) = &facts.guest else { return };
    match guest.clocks {
        _ if facts.platform_shim => say.ok("the platform shim keeps the HPET as it is"),
        Some(clocks) if clocks.hpet => {
            let reason = "the guest's HPET counts: QEMU's is clocked at 100 MHz, Xen's at 62.5 MHz, so a guest that takes \
                          its time from it runs 1.60x too fast";
            let remedy = "put the platform shim beside hyperferry (KVM); or boot the guest with hpet=disable (Linux) or \
                          hpet=0 in its configuration; or, where it takes its time from elsewhere, --allow hpet";
            say.refuse(reason, remedy);
        }
        None if guest.vm.config.hpet => {
            let reason = "the guest has an HPET; whether it counts is told only once the guest is paused, and refused then";
            say.note(reason, "`hyperferry check --domain` asks the Xen host while the guest runs");
        }
        _ => say.ok("the guest's HPET does not count"),
    }
}
