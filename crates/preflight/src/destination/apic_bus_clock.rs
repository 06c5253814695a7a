//! Whether KVM can give local APIC timers Xen's rate.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "apic-bus-clock", worst: Severity::Note, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(kvm) = facts.capabilities() else { return };
    if kvm.apic_bus_cycles_ns {
        return say.ok("KVM can clock local APICs as Xen does");
    }
    let reason = "KVM cannot set the APIC bus clock: local APIC timers tick 10x faster than under Xen";
    say.note(reason, "a kernel from Linux 6.11 on can; guests on the TSC deadline timer do not care");
}
