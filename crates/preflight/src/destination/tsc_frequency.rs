//! The rate of the time-stamp counter, which a guest measures once.

use hyperferry_relay::session::CLOCK_TOLERANCE_PPM;
use hyperferry_translate::qemu::Accelerator;

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "tsc-frequency", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(kvm) = &facts.kvm.capabilities else { return };
    let here = kvm.tsc_khz;
    if facts.options.accelerator == Accelerator::Kvm && kvm.tsc_control {
        return say.ok(format!("{here} kHz, and KVM scales it to the guest's"));
    }
    let guest = facts.guest.as_ref().map_or(0, |guest| guest.vm.clock.tsc_khz);
    if guest == 0 {
        let reason = format!("{here} kHz, and it cannot be scaled: only a guest of this rate can come");
        return say.note(reason, "`xl info` on the Xen host tells its rate (cpu_mhz)");
    }
    let (there, apart) = (u64::from(guest), u64::from(guest.abs_diff(here)));
    if apart * 1_000_000 <= there * CLOCK_TOLERANCE_PPM {
        return say.ok(format!("{here} kHz, as the guest's {guest} kHz"));
    }
    let reason = format!(
        "the guest's time-stamp counter runs at {guest} kHz, and the destination's at {here} kHz and cannot be scaled"
    );
    let remedy = "use a host whose KVM scales the TSC (AMD, or Intel since Skylake-SP), or a guest that takes its time \
                  from the ACPI PM timer (clocksource=acpi_pm)";
    say.refuse(reason, remedy);
}
