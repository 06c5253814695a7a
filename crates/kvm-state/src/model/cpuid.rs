//! The CPUID policy: one in the model, one for each vCPU in KVM, where the APIC ids differ.

use hyperferry_vm_model::{CpuidLeaf, CpuidPolicy, MsrPolicyEntry};

use super::msr::POLICY;
use crate::fate::Fates;
use crate::state::{CpuidEntry2, KvmVcpu, MsrEntry, msr_name};

pub(super) fn localise(policy: &CpuidPolicy, fates: &mut Fates) {
    fates.carried(&["cpuid"], "cpuid2 and msrs of every vCPU");
    fates.derived("cpuid.leaves: APIC ids in 0x1, 0xb, 0x1f, 0x8000001e", "each vCPU's own");
    for (index, entry) in policy.msrs.iter().enumerate().filter(|(_, entry)| !POLICY.contains(&entry.index)) {
        let note = format!("{} ({:#x}): KVM decides it", msr_name(entry.index), entry.index);
        fates.dropped(&format!("cpuid.msrs[{index}]"), note);
    }
}

/// The leaves that a vCPU with this APIC id sees.
pub(super) fn leaves(policy: &CpuidPolicy, apic_id: u32) -> Vec<CpuidEntry2> {
    let entry = |leaf: &CpuidLeaf| CpuidEntry2 {
        function: leaf.leaf,
        index: leaf.subleaf.unwrap_or(0),
        flags: leaf.subleaf.map_or(0, |_| kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
    };
    policy.leaves.iter().map(|leaf| with_apic_id(entry(leaf), apic_id)).collect()
}

/// The policy's read-only MSRs that KVM takes from outside.
pub(super) fn policy_msrs(policy: &CpuidPolicy) -> Vec<MsrEntry> {
    let known = policy.msrs.iter().filter(|entry| POLICY.contains(&entry.index));
    known.map(|entry| MsrEntry { index: entry.index, data: entry.value }).collect()
}

/// Puts the APIC id where CPUID shows it.
fn with_apic_id(entry: CpuidEntry2, apic_id: u32) -> CpuidEntry2 {
    match entry.function {
        0x1 => CpuidEntry2 { ebx: entry.ebx & 0x00ff_ffff | apic_id << 24, ..entry },
        0xb | 0x1f => CpuidEntry2 { edx: apic_id, ..entry },
        0x8000_001e => CpuidEntry2 { eax: apic_id, ..entry },
        _ => entry,
    }
}

pub(super) fn normalise(vcpus: &[KvmVcpu], fates: &mut Fates) -> CpuidPolicy {
    let Some((first, others)) = vcpus.split_first() else { return CpuidPolicy::default() };
    fates.carried(&["vcpus[0].cpuid2"], "cpuid.leaves");
    for (index, vcpu) in (1..).zip(others) {
        let field = format!("vcpus[{index}].cpuid2");
        let same = vcpu.cpuid2.len() == first.cpuid2.len()
            && vcpu.cpuid2.iter().zip(&first.cpuid2).all(|(a, b)| with_apic_id(*a, 0) == with_apic_id(*b, 0));
        if same {
            fates.derived(&field, "as vCPU 0, with its own APIC id");
        } else {
            fates.dropped(&field, "differs from vCPU 0 in more than APIC ids; the model has one policy");
        }
    }
    let leaf = |entry: &CpuidEntry2| CpuidLeaf {
        leaf: entry.function,
        subleaf: entry.index_is_significant().then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    };
    let msr = |index: u32| first.msr(index).map(|value| MsrPolicyEntry { index, value });
    CpuidPolicy {
        leaves: first.cpuid2.iter().map(leaf).collect(),
        msrs: POLICY.into_iter().filter_map(msr).collect(),
    }
}
