//! CPU features that the guest was shown.

use hyperferry_kvm_state::Capabilities;
use hyperferry_translate::cpu_features;
use hyperferry_vm_model::{CpuidLeaf, CpuidPolicy};

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "cpu-features", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(guest) = &facts.guest else { return };
    if guest.vm.cpuid.leaves.is_empty() {
        let reason = "not known: nothing told which CPU features the guest was shown";
        return say.note(reason, "check a save file's head, or --domain with xen-cpuid on the Xen host");
    }
    // KVM_GET_SUPPORTED_CPUID alone does not tell: QEMU adds what KVM has by other means (TSC deadline).
    let Some(available) = facts.qemu().and_then(|qemu| qemu.features.as_ref()) else { return };
    let missing = cpu_features::missing(&guest.vm.cpuid, available);
    if missing.is_empty() {
        return say.ok("all that the guest was shown");
    }
    let reason = format!("the guest may use CPU features that the destination lacks: {}", missing.join(" "));
    let remedy = "mask them in the guest's configuration (cpuid=) and boot it again, or land it on a host that has them";
    say.refuse(reason, remedy);
}

/// KVM_GET_SUPPORTED_CPUID in the form of a guest's policy.
pub(super) fn policy(kvm: &Capabilities) -> CpuidPolicy {
    let leaf = |entry: &hyperferry_kvm_state::CpuidEntry2| CpuidLeaf {
        leaf: entry.function,
        subleaf: Some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    };
    CpuidPolicy { leaves: kvm.cpuid.iter().map(leaf).collect(), msrs: Vec::new() }
}
