//! The guest's local APIC timers, where its host told how they are used.

use super::Facts;
use crate::{Check, Say, Severity, guest::LapicTimer};

pub(super) const CHECK: Check<Facts> = Check { name: "lapic-timer", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(guest) = &facts.guest else { return };
    let clocked = facts.capabilities().is_some_and(|kvm| kvm.apic_bus_cycles_ns);
    let remedy = "use a destination whose KVM can set the APIC bus clock (Linux 6.11 or newer), with the platform shim \
                  beside hyperferry, or boot the guest with another tick (TSC deadline, PIT)";
    match guest.clocks.map(|clocks| clocks.lapic_timer) {
        _ if facts.platform_shim && clocked => say.ok("the platform shim keeps the local APIC timer's rate"),
        Some(LapicTimer::Unused) => say.ok("the guest does not use the local APIC timer, or by TSC deadline"),
        Some(LapicTimer::Periodic) => {
            say.refuse(
                "the guest's tick is a periodic local APIC timer, which would run 10x too fast",
                remedy,
            );
        }
        Some(LapicTimer::OneShot) => {
            say.warn("the guest's local APIC timer runs in one-shot mode: shots come 10x early", remedy);
        }
        None => {
            let reason = "how the guest uses its local APIC timer is told only once it is paused; a periodic one is refused then";
            say.note(reason, "`hyperferry check --domain` asks the Xen host while the guest runs");
        }
    }
}
