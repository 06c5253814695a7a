//! The guest kernel's clock source, which only the guest knows.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "clocksource", worst: Severity::Note, judge };

fn judge(_: &Facts, say: &mut Say<'_>) {
    let reason = "which clock the guest takes its time from is known to the guest alone: it should be the TSC or the \
                  ACPI PM timer";
    let remedy = "in a Linux guest: cat /sys/devices/system/clocksource/clocksource0/current_clocksource; write tsc or \
                  acpi_pm to that file if it says hpet or xen";
    say.note(reason, remedy);
}
