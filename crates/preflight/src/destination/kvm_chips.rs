//! The chips that KVM has in the kernel: interrupt controllers and the interval timer.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "kvm-chips", worst: Severity::Refusal, judge };

/// Pins of a `pc` machine's I/O APIC.
const PINS: u32 = 24;

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(kvm) = facts.capabilities() else { return };
    if kvm.irqchip && kvm.pit2 && kvm.ioapic_pins >= PINS {
        return say.ok("PIC, I/O APIC, local APICs and PIT");
    }
    let reason = format!(
        "KVM lacks chips of a PC: interrupt controllers {}, PIT {}, I/O APIC pins {}",
        kvm.irqchip, kvm.pit2, kvm.ioapic_pins
    );
    say.refuse(reason, "use a kernel whose KVM has CONFIG_KVM_IOAPIC, or another host");
}
