//! How the guest uses its local APIC timers, read from the running domain.

use super::{Facts, needs_hvmctx};
use crate::{Check, Say, Severity, guest::LapicTimer};

pub(super) const CHECK: Check<Facts> = Check { name: "lapic-timer", worst: Severity::Warning, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(context) = &facts.context else { return needs_hvmctx(say) };
    let mode = match context.clocks().lapic_timer {
        LapicTimer::Unused => return say.ok("no local APIC timer is in use, or by TSC deadline"),
        LapicTimer::OneShot => "one-shot",
        LapicTimer::Periodic => "periodic",
    };
    let remedy = "use a destination whose KVM can set the APIC bus clock (Linux 6.11 or newer), with the platform shim \
                  beside hyperferry";
    say.warn(
        format!("a local APIC timer runs in {mode} mode, at a rate that KVM's has not by itself"),
        remedy,
    );
}
