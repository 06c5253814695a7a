//! The neutral model and KVM's state, each made from the other: one file a component.
//!
//! Both directions list what became of every field of their source. What KVM does not hold (memory layout, RTC, HPET,
//! PM timer, PCI wires, devices) belongs to the device model beside it and is listed as dropped.

mod cpuid;
mod irq;
mod lapic;
mod msr;
mod pit;
mod registers;
mod vcpu;
mod xsave;

use hyperferry_vm_model::{ApicTimer, Clock, Irq, Timers, Vm};

use crate::fate::{Fates, FieldFate};
use crate::json::check;
use crate::state::{ClockData, KvmVm};
use crate::{Capabilities, Result};

/// Nanoseconds of a second.
const NS: u64 = 1_000_000_000;

/// What the KVM that will take the state can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `KVM_CAP_X86_APIC_BUS_CYCLES_NS`: the guest keeps the APIC bus clock that it has measured. Without it the
    /// running shot is scaled to KVM's 1 GHz, and the guest goes on to set its timer at the old scale.
    pub apic_bus_cycles_ns: bool,
}

impl Default for Target {
    /// Linux 6.11 or newer.
    fn default() -> Self {
        Self { apic_bus_cycles_ns: true }
    }
}

impl From<&Capabilities> for Target {
    fn from(capabilities: &Capabilities) -> Self {
        Self { apic_bus_cycles_ns: capabilities.apic_bus_cycles_ns }
    }
}

/// The model's VM in KVM's terms, and what became of each of its fields.
pub fn localise(vm: &Vm, target: &Target) -> Result<(KvmVm, Vec<FieldFate>)> {
    let mut fates = Fates::default();
    fates.carried(&["origin"], "");
    fates.dropped("config", "not part of KVM's state: the arguments of the VMM");
    fates.dropped("memory", "not part of KVM's state: the memory slots of the VMM");
    fates.dropped("devices", "not part of KVM's state: devices live in the VMM");
    fates.dropped("remainder", "what QEMU alone has of the parts above; another QEMU takes it back");
    fates.dropped("xen", "what Xen alone has of the domain; another Xen takes it back");
    fates.carried(&["clock.guest_ns"], "clock.clock");
    fates.carried(&["clock.tsc_khz"], "tsc_khz of every vCPU");
    fates.dropped("clock.tsc_emulated", "KVM decides by TSC scaling of the host");
    let apic_bus_cycle_ns = apic_bus_cycle_ns(vm, *target);
    let irqchip = irq::localise(&vm.irq, &mut fates);
    let pit2 = pit::localise(&vm.timers, &mut fates);
    cpuid::localise(&vm.cpuid, &mut fates);
    let vcpus = vm
        .vcpus
        .iter()
        .enumerate()
        .map(|(index, vcpu)| {
            fates.below(format!("vcpus[{index}]."));
            vcpu::localise(vm, vcpu, apic_bus_cycle_ns, &mut fates)
        })
        .collect::<Result<_>>()?;
    let clock = ClockData { clock: vm.clock.guest_ns };
    let state = KvmVm { origin: vm.origin.clone(), apic_bus_cycle_ns, clock, irqchip, pit2, vcpus };
    check(&state)?;
    Ok((state, fates.into_list()))
}

/// KVM's state in the model's terms, and what became of each of its fields. What KVM does not hold has its default.
pub fn normalise(state: &KvmVm) -> Result<(Vm, Vec<FieldFate>)> {
    check(state)?;
    let mut fates = Fates::default();
    fates.carried(&["origin"], "");
    fates.carried(&["apic_bus_cycle_ns"], "lapic.timer.bus_hz of every vCPU");
    fates.carried(&["clock.clock"], "clock.guest_ns");
    let irq: Irq = irq::normalise(&state.irqchip, &mut fates);
    let timers = Timers { pit: pit::normalise(&state.pit2, &mut fates), ..Timers::default() };
    let cpuid = cpuid::normalise(&state.vcpus, &mut fates);
    let tsc_khz = state.vcpus.first().map_or(0, |vcpu| vcpu.tsc_khz);
    let mut vcpus = Vec::with_capacity(state.vcpus.len());
    for (index, vcpu) in (0..).zip(&state.vcpus) {
        fates.below(format!("vcpus[{index}]."));
        if vcpu.tsc_khz == tsc_khz {
            fates.carried(&["tsc_khz"], "clock.tsc_khz");
        } else {
            fates.dropped("tsc_khz", format!("{} kHz: the model has one rate, {tsc_khz} kHz", vcpu.tsc_khz));
        }
        vcpus.push(vcpu::normalise(index, vcpu, state.apic_bus_cycle_ns, &mut fates)?);
    }
    let clock = Clock { tsc_khz, guest_ns: state.clock.clock, tsc_emulated: false };
    let vm = Vm { origin: state.origin.clone(), cpuid, vcpus, clock, irq, timers, ..Vm::default() };
    Ok((vm, fates.into_list()))
}

/// Length of an APIC bus cycle that suits the guest, where KVM can be told; else KVM's own.
fn apic_bus_cycle_ns(vm: &Vm, target: Target) -> u32 {
    vm.vcpus
        .first()
        .map(|vcpu| vcpu.lapic.timer)
        .filter(|timer: &ApicTimer| {
            target.apic_bus_cycles_ns && timer.bus_hz != 0 && NS.is_multiple_of(timer.bus_hz)
        })
        .and_then(|timer| u32::try_from(NS / timer.bus_hz).ok())
        .unwrap_or(1)
}

#[cfg(test)]
mod tests;
