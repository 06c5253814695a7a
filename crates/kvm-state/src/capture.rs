//! `/dev/kvm` to [`KvmVm`].
//!
//! The vCPUs must not run. Order: MP state first, because reading it lets KVM take up a pending INIT or SIPI, which
//! changes registers; events last, because nothing after them may disturb them.

use std::collections::BTreeSet;

use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::raw;
use crate::state::{
    ClockData, Irqchip, KvmVcpu, KvmVm, MTRR_FIXED, MTRR_VARIABLE, MpState, MsrEntry, Xcr, Xsave,
    XsaveLayout, msr_number,
};
use crate::{Error, Result};

/// Number of `KVM_CAP_X86_APIC_BUS_CYCLES_NS`.
pub(crate) const CAP_X86_APIC_BUS_CYCLES_NS: u32 = kvm_bindings::KVM_CAP_X86_APIC_BUS_CYCLES_NS;

/// A vCPU and the id it was created with; KVM has no ioctl that tells it.
#[derive(Clone, Copy, Debug)]
pub struct CapturedVcpu<'a> {
    /// Argument of `KVM_CREATE_VCPU`.
    pub vcpu_id: u32,
    /// The vCPU.
    pub fd: &'a VcpuFd,
}

/// Reads the state of a VM with in-kernel chips.
///
/// `apic_bus_cycle_ns` is what the VM was given with `KVM_CAP_X86_APIC_BUS_CYCLES_NS`; none asks KVM, which
/// answers truthfully in kernels from mid-2026 on and always 1 before ("KVM: x86: Return the VM's configured APIC
/// bus frequency when queried").
pub fn capture(
    kvm: &Kvm,
    vm: &VmFd,
    vcpus: &[CapturedVcpu<'_>],
    apic_bus_cycle_ns: Option<u32>,
) -> Result<KvmVm> {
    let layout = host_layout(kvm)?;
    let vcpus = vcpus.iter().map(|vcpu| capture_vcpu(kvm, vm, *vcpu, &layout)).collect::<Result<Vec<_>>>()?;
    let irqchip: Irqchip = raw::get_irqchip(vm)?;
    let pit2 = (&vm.get_pit2().map_err(Error::on_vm("KVM_GET_PIT2"))?).into();
    let clock = ClockData::from(&vm.get_clock().map_err(Error::on_vm("KVM_GET_CLOCK"))?);
    let asked = || u32::try_from(vm.check_extension_raw(CAP_X86_APIC_BUS_CYCLES_NS.into())).unwrap_or(1);
    let apic_bus_cycle_ns = apic_bus_cycle_ns.unwrap_or_else(|| asked().max(1));
    Ok(KvmVm { origin: "KVM".to_owned(), apic_bus_cycle_ns, clock, irqchip, pit2, vcpus })
}

/// Reads the state of a vCPU. `layout` is the host's: [`XsaveLayout::from_cpuid`] of `KVM_GET_SUPPORTED_CPUID`.
pub fn capture_vcpu(kvm: &Kvm, vm: &VmFd, vcpu: CapturedVcpu<'_>, layout: &XsaveLayout) -> Result<KvmVcpu> {
    let CapturedVcpu { vcpu_id: id, fd } = vcpu;
    let mp_state = MpState(fd.get_mp_state().map_err(Error::on_vcpu("KVM_GET_MP_STATE", id))?.mp_state);
    let regs = (&fd.get_regs().map_err(Error::on_vcpu("KVM_GET_REGS", id))?).into();
    let sregs = (&fd.get_sregs().map_err(Error::on_vcpu("KVM_GET_SREGS", id))?).into();
    let xcrs = get_xcrs(vm, fd, id)?;
    let xcr0 = xcrs.iter().find(|entry| entry.xcr == 0).map_or(1, |entry| entry.value);
    let area = raw::get_xsave(fd, id, raw::xsave_size(vm))?;
    let debugregs = (&fd.get_debug_regs().map_err(Error::on_vcpu("KVM_GET_DEBUGREGS", id))?).into();
    let lapic = (&fd.get_lapic().map_err(Error::on_vcpu("KVM_GET_LAPIC", id))?).into();
    let cpuid2 = fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    let cpuid2 =
        cpuid2.map_err(Error::on_vcpu("KVM_GET_CPUID2", id))?.as_slice().iter().map(Into::into).collect();
    let tsc_khz = fd.get_tsc_khz().map_err(Error::on_vcpu("KVM_GET_TSC_KHZ", id))?;
    let msrs = get_msrs(fd, id, &msr_indices(kvm)?.into_iter().collect::<Vec<_>>())?;
    let vcpu_events = (&fd.get_vcpu_events().map_err(Error::on_vcpu("KVM_GET_VCPU_EVENTS", id))?).into();
    Ok(KvmVcpu {
        vcpu_id: id,
        tsc_khz,
        cpuid2,
        mp_state,
        regs,
        sregs,
        xsave: Xsave::decode(&area, layout, xcr0),
        xcrs,
        debugregs,
        lapic,
        msrs,
        vcpu_events,
    })
}

/// Where the host's CPU puts the XSAVE components.
pub(crate) fn host_layout(kvm: &Kvm) -> Result<XsaveLayout> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::on_vm("KVM_GET_SUPPORTED_CPUID"))?;
    XsaveLayout::from_cpuid(&supported.as_slice().iter().map(Into::into).collect::<Vec<_>>())
}

fn get_xcrs(vm: &VmFd, fd: &VcpuFd, id: u32) -> Result<Vec<Xcr>> {
    if !vm.check_extension(kvm_ioctls::Cap::Xcrs) {
        return Ok(Vec::new());
    }
    let xcrs = fd.get_xcrs().map_err(Error::on_vcpu("KVM_GET_XCRS", id))?;
    Ok(xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).map(Into::into).collect())
}

/// MSRs to save: KVM's own list and the MTRRs, which it leaves out.
pub(crate) fn msr_indices(kvm: &Kvm) -> Result<BTreeSet<u32>> {
    let list = kvm.get_msr_index_list().map_err(Error::on_vm("KVM_GET_MSR_INDEX_LIST"))?;
    let mtrrs = MTRR_FIXED.into_iter().chain(MTRR_VARIABLE..MTRR_VARIABLE + 16);
    let named = [msr_number::IA32_PAT, msr_number::MTRR_DEF_TYPE];
    Ok(list.as_slice().iter().copied().chain(mtrrs).chain(named).collect())
}

/// `KVM_GET_MSRS` stops at the first MSR that the vCPU's CPUID hides: that one is left out, the rest asked again.
pub(crate) fn get_msrs(fd: &VcpuFd, id: u32, indices: &[u32]) -> Result<Vec<MsrEntry>> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest
            .iter()
            .take(kvm_bindings::KVM_MAX_MSR_ENTRIES)
            .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
            .collect();
        let asked = entries.len();
        let mut msrs = kvm_bindings::Msrs::from_entries(&entries)
            .map_err(|_| Error::field("KVM_GET_MSRS", asked, "at most 256 entries"))?;
        let read = fd.get_msrs(&mut msrs).map_err(Error::on_vcpu("KVM_GET_MSRS", id))?;
        found.extend(msrs.as_slice().iter().take(read).map(MsrEntry::from));
        let done = if read < asked { read + 1 } else { read };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_msr_that_the_vcpu_lacks_does_not_hide_those_after_it() {
        let Ok(kvm) = Kvm::new() else { return eprintln!("skipped: no usable KVM here") };
        let vm = kvm.create_vm().unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let found =
            get_msrs(&fd, 0, &[0xdead_0000, 0x174, 0xdead_0001, 0xdead_0002, 0x175, 0xdead_0003]).unwrap();
        assert_eq!(found.iter().map(|entry| entry.index).collect::<Vec<_>>(), [0x174, 0x175]);
    }
}
