//! [`KvmVm`] to `/dev/kvm`.
//!
//! The order matters to KVM; in this one a whole state came back as it was put in (`tests/host.rs`, Linux 6.18):
//!
//! 1. The VM: `KVM_CREATE_IRQCHIP`, `KVM_CREATE_PIT2`, then the APIC bus clock, which only a VM with an APIC and
//!    without vCPUs takes, then the vCPUs, each with its APIC id as its id.
//! 2. `KVM_SET_CPUID2` first: it decides which bits of CR4, EFER, XCR0 and which MSRs are legal.
//! 3. `KVM_SET_TSC_KHZ` before the TSC itself; `KVM_SET_MP_STATE` before the APIC and the events, which it may clear.
//! 4. `KVM_SET_REGS` before the events: it discards a pending exception. `KVM_SET_SREGS` before `KVM_SET_LAPIC`: it
//!    sets the APIC's mode. `KVM_SET_XCRS` before `KVM_SET_XSAVE`.
//! 5. `KVM_SET_LAPIC` before `KVM_SET_MSRS`: IA32_TSC_DEADLINE is taken only when the LVT is in that mode.
//! 6. The chips of the VM after the APICs, because the I/O APIC delivers what it holds at once; the clock last.

use kvm_bindings::{CpuId, kvm_enable_cap, kvm_msr_entry, kvm_pit_config, kvm_xcrs};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::capture::{CAP_X86_APIC_BUS_CYCLES_NS, get_msrs, host_layout};
use crate::json::check;
use crate::raw;
use crate::state::{KvmVcpu, KvmVm, MsrEntry, XsaveLayout, msr_number};
use crate::{Error, Result};

/// Pages that Intel's VMX needs to run real mode, below the BIOS: clear of guest RAM and of all devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// A TSC rate this close to the host's own needs no scaling (QEMU allows the same), parts per million.
const TSC_TOLERANCE_PPM: u64 = 250;

/// A time-stamp counter further ahead than this after a load was never set: no load takes so long.
const LOAD_TIME_LIMIT_MS: u64 = 10_000;

/// A VM made for a state, without memory.
#[derive(Debug)]
pub struct Created {
    /// The VM, with in-kernel chips.
    pub vm: VmFd,
    /// Its vCPUs, in the state's order.
    pub vcpus: Vec<VcpuFd>,
}

/// What KVM made of a state that it took without an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// MSRs that are zero in the state and unknown to the vCPU: they read as zero or not at all, so nothing is lost.
    pub skipped: Vec<SkippedMsr>,
    /// MSRs that read back otherwise than they were written: KVM ignored the write. The caller must judge them; a
    /// time-stamp counter among them means that the guest's clock jumps.
    pub changed: Vec<ChangedMsr>,
}

/// An MSR that was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkippedMsr {
    /// vCPU, by KVM's id.
    pub vcpu: u32,
    /// MSR number.
    pub index: u32,
}

/// An MSR whose write KVM ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedMsr {
    /// vCPU, by KVM's id.
    pub vcpu: u32,
    /// MSR number.
    pub index: u32,
    /// Value in the state.
    pub wanted: u64,
    /// Value after the load.
    pub found: u64,
}

/// Creates a VM that can take the state: chips, APIC bus clock, vCPUs with the right ids.
pub fn create(kvm: &Kvm, state: &KvmVm) -> Result<Created> {
    check(state)?;
    let vm = kvm.create_vm().map_err(Error::on_vm("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(Error::on_vm("KVM_SET_TSS_ADDR"))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(Error::on_vm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.create_irq_chip().map_err(Error::on_vm("KVM_CREATE_IRQCHIP"))?;
    vm.create_pit2(kvm_pit_config::default()).map_err(Error::on_vm("KVM_CREATE_PIT2"))?;
    if state.apic_bus_cycle_ns != 1 {
        set_apic_bus(&vm, state.apic_bus_cycle_ns)?;
    }
    let vcpus = state
        .vcpus
        .iter()
        .map(|vcpu| {
            vm.create_vcpu(vcpu.vcpu_id.into()).map_err(Error::on_vcpu("KVM_CREATE_VCPU", vcpu.vcpu_id))
        })
        .collect::<Result<_>>()?;
    Ok(Created { vm, vcpus })
}

fn set_apic_bus(vm: &VmFd, cycle_ns: u32) -> Result<()> {
    if vm.check_extension_raw(CAP_X86_APIC_BUS_CYCLES_NS.into()) <= 0 {
        return Err(Error::Capability {
            capability: "KVM_CAP_X86_APIC_BUS_CYCLES_NS",
            why: format!(
                "the guest's APIC timer counts {cycle_ns} ns a cycle; use Linux 6.11 or newer, or a state made for \
                 a bus of 1 ns"
            ),
        });
    }
    let cap = kvm_enable_cap {
        cap: CAP_X86_APIC_BUS_CYCLES_NS,
        args: [cycle_ns.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(Error::on_vm("KVM_ENABLE_CAP(KVM_CAP_X86_APIC_BUS_CYCLES_NS)"))
}

/// Writes the whole state into a VM of [`create`], or one made alike.
pub fn load(kvm: &Kvm, vm: &VmFd, vcpus: &[VcpuFd], state: &KvmVm) -> Result<Loaded> {
    check(state)?;
    if vcpus.len() != state.vcpus.len() {
        let wanted = format!("{}, one for each in the state", state.vcpus.len());
        return Err(Error::field("vCPUs of the VM", vcpus.len(), wanted));
    }
    let layout = host_layout(kvm)?;
    let mut loaded = Loaded::default();
    for (fd, vcpu) in vcpus.iter().zip(&state.vcpus) {
        let Loaded { skipped, changed } = load_vcpu(vm, fd, vcpu, &layout)?;
        loaded.skipped.extend(skipped);
        loaded.changed.extend(changed);
    }
    raw::set_irqchip(vm, &state.irqchip)?;
    vm.set_pit2(&(&state.pit2).into()).map_err(Error::on_vm("KVM_SET_PIT2"))?;
    vm.set_clock(&(&state.clock).into()).map_err(Error::on_vm("KVM_SET_CLOCK"))?;
    Ok(loaded)
}

/// Writes the state of a vCPU. `layout` is the host's: [`XsaveLayout::from_cpuid`] of `KVM_GET_SUPPORTED_CPUID`.
pub fn load_vcpu(vm: &VmFd, fd: &VcpuFd, state: &KvmVcpu, layout: &XsaveLayout) -> Result<Loaded> {
    let id = state.vcpu_id;
    check_layout(state, layout)?;
    set_cpuid(fd, state)?;
    set_tsc_khz(fd, state)?;
    let mp_state = kvm_bindings::kvm_mp_state { mp_state: state.mp_state.0 };
    fd.set_mp_state(mp_state).map_err(Error::on_vcpu("KVM_SET_MP_STATE", id))?;
    fd.set_regs(&(&state.regs).into()).map_err(Error::on_vcpu("KVM_SET_REGS", id))?;
    fd.set_sregs(&(&state.sregs).into()).map_err(Error::on_vcpu("KVM_SET_SREGS", id))?;
    set_xcrs(vm, fd, state)?;
    let size = raw::xsave_size(vm);
    raw::set_xsave(fd, id, &state.xsave.encode(layout, size)?, size)?;
    fd.set_debug_regs(&(&state.debugregs).into()).map_err(Error::on_vcpu("KVM_SET_DEBUGREGS", id))?;
    fd.set_lapic(&(&state.lapic).into()).map_err(Error::on_vcpu("KVM_SET_LAPIC", id))?;
    let skipped = set_msrs(fd, state)?;
    fd.set_vcpu_events(&(&state.vcpu_events).into()).map_err(Error::on_vcpu("KVM_SET_VCPU_EVENTS", id))?;
    Ok(Loaded { skipped, changed: changed_msrs(fd, state)? })
}

/// The guest computes save areas from its CPUID and the CPU fills them by its own layout: they must agree.
fn check_layout(state: &KvmVcpu, host: &XsaveLayout) -> Result<()> {
    let guest = XsaveLayout::from_cpuid(&state.cpuid2)?;
    let enabled = state.xcr0();
    for place in guest.components.iter().filter(|place| enabled >> place.number & 1 == 1) {
        if host.place(place.number) != Some(*place) {
            let show = |place: Option<_>| match place {
                Some(crate::XsavePlace { offset, size, .. }) => format!("{size} bytes at {offset}"),
                None => "none".to_owned(),
            };
            let field = format!("vCPU {}: CPUID leaf 0xd, component {}", state.vcpu_id, place.number);
            let wanted = format!("{} as this host's CPU has it", show(host.place(place.number)));
            return Err(Error::field(field, show(Some(*place)), wanted));
        }
    }
    Ok(())
}

fn set_cpuid(fd: &VcpuFd, state: &KvmVcpu) -> Result<()> {
    let entries: Vec<_> = state.cpuid2.iter().map(kvm_bindings::kvm_cpuid_entry2::from).collect();
    let cpuid = CpuId::from_entries(&entries)
        .map_err(|_| Error::field("cpuid2", entries.len(), "at most 256 leaves"))?;
    fd.set_cpuid2(&cpuid).map_err(Error::on_vcpu("KVM_SET_CPUID2", state.vcpu_id))
}

fn set_tsc_khz(fd: &VcpuFd, state: &KvmVcpu) -> Result<()> {
    let id = state.vcpu_id;
    let host = fd.get_tsc_khz().map_err(Error::on_vcpu("KVM_GET_TSC_KHZ", id))?;
    if state.tsc_khz == 0 || state.tsc_khz == host {
        return Ok(());
    }
    let difference = u64::from(host.abs_diff(state.tsc_khz)) * 1_000_000;
    match fd.set_tsc_khz(state.tsc_khz) {
        Err(error) if difference > u64::from(host) * TSC_TOLERANCE_PPM => {
            Err(Error::on_vcpu("KVM_SET_TSC_KHZ", id)(error))
        }
        _ => Ok(()),
    }
}

fn set_xcrs(vm: &VmFd, fd: &VcpuFd, state: &KvmVcpu) -> Result<()> {
    let id = state.vcpu_id;
    if !vm.check_extension(Cap::Xcrs) {
        if state.xcr0() == 1 {
            return Ok(());
        }
        let why = format!("vCPU {id} has XCR0 {:#x}", state.xcr0());
        return Err(Error::Capability { capability: "KVM_CAP_XCRS", why });
    }
    let mut xcrs = kvm_xcrs::default();
    for (place, xcr) in xcrs.xcrs.iter_mut().zip(&state.xcrs) {
        *place = xcr.into();
        xcrs.nr_xcrs += 1;
    }
    if xcrs.nr_xcrs == 0 {
        return Ok(());
    }
    fd.set_xcrs(&xcrs).map_err(Error::on_vcpu("KVM_SET_XCRS", id))
}

/// `KVM_SET_MSRS` stops at the first MSR it refuses and says how many it took: that one is the culprit.
fn set_msrs(fd: &VcpuFd, state: &KvmVcpu) -> Result<Vec<SkippedMsr>> {
    let vcpu = state.vcpu_id;
    let mut skipped = Vec::new();
    let mut rest = state.msrs.as_slice();
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().take(kvm_bindings::KVM_MAX_MSR_ENTRIES).map(kvm_msr_entry::from).collect();
        let msrs = kvm_bindings::Msrs::from_entries(&entries)
            .map_err(|_| Error::field("msrs", entries.len(), "at most 256 entries"))?;
        let written = fd.set_msrs(&msrs).map_err(Error::on_vcpu("KVM_SET_MSRS", vcpu))?;
        rest = rest.get(written..).unwrap_or_default();
        if written < entries.len() {
            let Some((refused, after)) = rest.split_first() else { break };
            if refused.data != 0 {
                return Err(Error::Msr { vcpu, index: refused.index, value: refused.data });
            }
            skipped.push(SkippedMsr { vcpu, index: refused.index });
            rest = after;
        }
    }
    Ok(skipped)
}

/// Reads the MSRs back: some kernels take a write and ignore it (seen: IA32_TSC and IA32_TSC_ADJUST under PVM).
fn changed_msrs(fd: &VcpuFd, state: &KvmVcpu) -> Result<Vec<ChangedMsr>> {
    let indices: Vec<u32> = state.msrs.iter().map(|entry| entry.index).collect();
    let found = get_msrs(fd, state.vcpu_id, &indices)?;
    let changed = |entry: &MsrEntry| {
        let wanted = state.msr(entry.index).filter(|wanted| *wanted != entry.data)?;
        let runs_on = match entry.index {
            msr_number::IA32_TSC => {
                let elapsed = entry.data.wrapping_sub(wanted);
                elapsed <= u64::from(state.tsc_khz) * LOAD_TIME_LIMIT_MS
            }
            // It goes out when it fires, and counts in one mode of the timer only.
            msr_number::IA32_TSC_DEADLINE => entry.data == 0,
            _ => false,
        };
        let change = ChangedMsr { vcpu: state.vcpu_id, index: entry.index, wanted, found: entry.data };
        (!runs_on).then_some(change)
    };
    Ok(found.iter().filter_map(changed).collect())
}
