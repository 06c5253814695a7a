//! KVM itself.

use hyperferry_kvm_state::Access;
use hyperferry_translate::qemu::Accelerator;

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "kvm", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    if facts.options.accelerator == Accelerator::Tcg {
        return say.note("the guest would run in QEMU's emulation (--accel tcg), many times slower", "");
    }
    if facts.kvm.access == Access::Usable {
        return say.ok("/dev/kvm can be used");
    }
    let why = facts.kvm.reason.clone().unwrap_or_default();
    let remedy = "load kvm_intel or kvm_amd, switch virtualization on in the firmware, let this user open /dev/kvm \
                  (group kvm); or --accel tcg for emulation";
    say.refuse(format!("KVM cannot be used: {why}"), remedy);
}
