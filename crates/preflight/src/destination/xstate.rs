//! XSAVE components that the guest may switch on.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "xstate", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let (Some(kvm), Some(guest)) = (facts.capabilities(), &facts.guest) else { return };
    let Some(leaf) = guest.vm.cpuid.leaf(0xd, 0) else { return };
    let shown = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    let lacking = shown & !kvm.xcr0;
    if lacking == 0 {
        return say.ok(format!("XCR0 {shown:#x} of {:#x}", kvm.xcr0));
    }
    let reason = format!(
        "the guest may save CPU state in XSAVE components that KVM here lacks: XCR0 bits {lacking:#x}"
    );
    say.refuse(
        reason,
        "mask the features in the guest's configuration (cpuid=) and boot it again, or use another host",
    );
}
