//! MSRs: those of the model, memory types and clocks among them, and KVM's list.

use hyperferry_vm_model::{VariableRange, Vcpu};

use crate::fate::Fates;
use crate::state::{KvmVcpu, MTRR_FIXED, MTRR_VARIABLE, MsrEntry, msr_name, msr_number as number};

/// MTRRcap as KVM shows it: eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = 0x508;
/// Read-only MSRs of a CPUID policy that KVM takes from outside.
pub(super) const POLICY: [u32; 2] = [number::MSR_PLATFORM_INFO, number::IA32_ARCH_CAPABILITIES];

/// MSRs that every vCPU has. The TSC comes first: KVM arms the deadline timer by the TSC of that instant.
fn plain(vcpu: &mut Vcpu) -> Vec<(u32, &mut u64)> {
    let Vcpu { tsc, msrs, mtrrs, lapic, .. } = vcpu;
    let mut list = vec![
        (number::IA32_TSC, tsc),
        (number::IA32_TSC_ADJUST, &mut msrs.tsc_adjust),
        (number::IA32_SYSENTER_CS, &mut msrs.sysenter_cs),
        (number::IA32_SYSENTER_ESP, &mut msrs.sysenter_esp),
        (number::IA32_SYSENTER_EIP, &mut msrs.sysenter_eip),
        (number::MSR_STAR, &mut msrs.star),
        (number::MSR_LSTAR, &mut msrs.lstar),
        (number::MSR_CSTAR, &mut msrs.cstar),
        (number::MSR_SYSCALL_MASK, &mut msrs.sfmask),
        (number::MSR_KERNEL_GS_BASE, &mut msrs.kernel_gs_base),
        (number::MSR_TSC_AUX, &mut msrs.tsc_aux),
        (number::IA32_PAT, &mut msrs.pat),
        (number::IA32_TSC_DEADLINE, &mut lapic.timer.tsc_deadline),
        (number::MTRR_DEF_TYPE, &mut mtrrs.def_type),
    ];
    list.extend(MTRR_FIXED.into_iter().zip(&mut mtrrs.fixed));
    let variable = mtrrs.variable.iter_mut().flat_map(|VariableRange { base, mask }| [base, mask]);
    list.extend((MTRR_VARIABLE..).zip(variable));
    list
}

/// MSRs that a guest may not have.
fn optional(vcpu: &mut Vcpu) -> [(u32, &mut Option<u64>); 5] {
    let msrs = &mut vcpu.msrs;
    [
        (number::IA32_SPEC_CTRL, &mut msrs.spec_ctrl),
        (number::IA32_XSS, &mut msrs.xss),
        (number::IA32_BNDCFGS, &mut msrs.bndcfgs),
        (number::MSR_AMD64_VIRT_SPEC_CTRL, &mut msrs.virt_spec_ctrl),
        (number::MSR_MISC_FEATURES_ENABLES, &mut msrs.misc_features_enables),
    ]
}

pub(super) fn localise(vcpu: &Vcpu, policy: &[MsrEntry], fates: &mut Fates) -> Vec<MsrEntry> {
    fates.carried(&["tsc", "msrs", "mtrrs.def_type", "mtrrs.fixed", "mtrrs.variable"], "msrs");
    fates.dropped("mtrrs.cap", format!("{:#x}: KVM shows {MTRR_CAP:#x}", vcpu.mtrrs.cap));
    fates.dropped("machine_check", "KVM shows banks of its own; CMCI is not set up");
    if let Some(pkrs) = vcpu.msrs.pkrs {
        fates.dropped("msrs.pkrs", format!("{pkrs:#x}: KVM has no supervisor protection keys"));
    }
    if vcpu.msrs.dr_mask.iter().any(Option::is_some) {
        fates.dropped("msrs.dr_mask", "KVM has no address masks for breakpoints");
    }
    let mut copy = vcpu.clone();
    let mut list: Vec<_> =
        plain(&mut copy).into_iter().map(|(index, value)| MsrEntry { index, data: *value }).collect();
    list.extend(
        optional(&mut copy)
            .into_iter()
            .filter_map(|(index, value)| Some(MsrEntry { index, data: (*value)? })),
    );
    list.extend(policy);
    list
}

/// Fills the model's MSRs from KVM's list.
pub(super) fn normalise(from: &KvmVcpu, vcpu: &mut Vcpu, fates: &mut Fates) {
    fates.carried(&["msrs"], "tsc, msrs, mtrrs, lapic.timer.tsc_deadline, cpuid.msrs");
    let mut known = POLICY.to_vec();
    for (index, place) in plain(vcpu) {
        known.push(index);
        match from.msr(index) {
            Some(value) => *place = value,
            None => {
                fates.defaulted(&format!("msrs[{index:#x}]"), format!("{} is not listed: 0", msr_name(index)))
            }
        }
    }
    for (index, place) in optional(vcpu) {
        known.push(index);
        *place = from.msr(index);
    }
    vcpu.mtrrs.cap = MTRR_CAP;
    for MsrEntry { index, data } in from.msrs.iter().filter(|entry| !known.contains(&entry.index)) {
        fates.dropped(
            &format!("msrs[{index:#x}]"),
            format!("{} = {data:#x}: no place in the model", msr_name(*index)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_is_set_before_the_deadline() {
        let list = localise(&Vcpu::default(), &[], &mut Fates::default());
        let place = |index| list.iter().position(|entry| entry.index == index).unwrap();
        assert!(place(number::IA32_TSC) < place(number::IA32_TSC_DEADLINE));
        assert_eq!(list.iter().map(|entry| entry.index).max(), Some(number::MSR_TSC_AUX));
    }

    #[test]
    fn every_msr_has_one_place() {
        let mut vcpu = Vcpu::default();
        let mut indices: Vec<_> = plain(&mut vcpu).into_iter().map(|(index, _)| index).collect();
        indices.extend(optional(&mut vcpu).map(|(index, _)| index));
        indices.extend(POLICY);
        let count = indices.len();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), count);
        assert!(indices.contains(&0x20f) && indices.contains(&0x26f));
    }

    #[test]
    fn numbers_are_those_of_the_manuals() {
        let mut vcpu = Vcpu { tsc: 17, ..Vcpu::default() };
        vcpu.msrs = hyperferry_vm_model::Msrs {
            sysenter_cs: 1,
            sysenter_esp: 2,
            sysenter_eip: 3,
            star: 4,
            lstar: 5,
            cstar: 6,
            sfmask: 7,
            kernel_gs_base: 8,
            tsc_aux: 9,
            tsc_adjust: 10,
            pat: 11,
            spec_ctrl: Some(12),
            xss: Some(13),
            bndcfgs: Some(14),
            virt_spec_ctrl: Some(15),
            misc_features_enables: Some(16),
            ..Default::default()
        };
        vcpu.lapic.timer.tsc_deadline = 18;
        vcpu.mtrrs.def_type = 19;
        vcpu.mtrrs.fixed[3] = 20;
        vcpu.mtrrs.variable[1] = VariableRange { base: 21, mask: 22 };
        let list = localise(&vcpu, &[], &mut Fates::default());
        for (index, data) in [
            (0x174, 1),
            (0x175, 2),
            (0x176, 3),
            (0xc000_0081, 4),
            (0xc000_0082, 5),
            (0xc000_0083, 6),
            (0xc000_0084, 7),
            (0xc000_0102, 8),
            (0xc000_0103, 9),
            (0x3b, 10),
            (0x277, 11),
            (0x48, 12),
            (0xda0, 13),
            (0xd90, 14),
            (0xc001_011f, 15),
            (0x140, 16),
            (0x10, 17),
            (0x6e0, 18),
            (0x2ff, 19),
            (0x268, 20),
            (0x202, 21),
            (0x203, 22),
        ] {
            let found = list.iter().find(|entry| entry.index == index).map(|entry| entry.data);
            assert_eq!(found, Some(data), "{index:#x}");
        }
    }
}
