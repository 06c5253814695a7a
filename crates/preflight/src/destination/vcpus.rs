//! The number of vCPUs, and the highest APIC id: Xen's are twice the vCPU's number.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "vcpus", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let (Some(kvm), Some(guest)) = (facts.capabilities(), &facts.guest) else { return };
    let wanted = usize::try_from(guest.vm.config.max_vcpus.max(1)).unwrap_or(usize::MAX);
    let last_id = 2 * (wanted - 1);
    if wanted <= kvm.max_vcpus && last_id < kvm.max_vcpu_id {
        return say.ok(format!("{wanted} of at most {}", kvm.max_vcpus));
    }
    let reason = format!(
        "the guest has {wanted} vCPUs with APIC ids up to {last_id}; KVM here has {} and ids below {}",
        kvm.max_vcpus, kvm.max_vcpu_id
    );
    say.refuse(reason, "boot the guest with fewer vCPUs (maxvcpus=), or use another host");
}
