//! The device sections, sorted by what they are about.

use hyperferry_qemu_stream::{DeviceState, Section};
use hyperferry_vm_model::{Clock, Device, PciAddress, Remainder, RunState, Vm};

use super::{Hint, place};
use crate::{
    Error, Result,
    component::{
        devices::{self, pci},
        fields::{STAGE, record_of},
        irq, lapic, timers, vcpu,
    },
    qemu::{Accelerator, args},
    refusal::Policy,
    report::Report,
};

/// Sections that are neither a chip nor a device of the guest: QEMU takes them back as they are.
const KEPT: [&str; 6] = ["kvmclock", "fw_cfg", "acpi_build", "globalstate", "kvm-tpr-opt", "slirp"];
/// Sections that components take apart.
const CHIPS: [&str; 9] = ["timer", "cpu", "cpu_common", "apic", "i8259", "ioapic", "i8254", "pcspk", "hpet"];
/// The clock: its registers are a component's, its memory the device's.
const RTC: &str = "mc146818rtc";

/// Wire to model: all of the device state.
pub(super) fn normalise(
    state: &DeviceState,
    vm: &mut Vm,
    hint: &Hint,
    from_xen: bool,
    policy: &Policy,
    report: &mut Report,
) -> Result<()> {
    let find = |name: &'static str, instance: u32| {
        let mut sections = state.sections.iter();
        let found = sections.find(|section| section.vmsd() == name && section.instance_id == instance);
        let why = "every pc machine has it";
        found.ok_or(Error::Missing { record: name, instance: Some(instance), why })
    };
    let accelerator = hint.accelerator.unwrap_or_else(|| accelerator(state));
    let machine = vm.origin.strip_prefix("QEMU ").unwrap_or_default().to_owned();
    let mut remainder =
        Remainder { machine, kvm: accelerator == Accelerator::Kvm, from_xen, sections: Vec::new() };

    let (clock, ticks, left) = timers::qemu_in::normalise_clock(find("timer", 0)?, report)?;
    remainder.sections.push(left);
    let mut tsc_khz = hint.vm.clock.tsc_khz;
    vm.vcpus.clear();
    let apics = state.sections.iter().filter(|section| section.vmsd() == "apic");
    let cpus = state.sections.iter().filter(|section| section.vmsd() == "cpu");
    for (cpu, apic) in cpus.zip(apics) {
        if from_xen && is_spare(apic) {
            for section in [cpu, apic] {
                let why = "a second thread, which fills a gap in the APIC ids of Xen and never starts";
                report.record(STAGE, record_of(section)).derived("*", why);
            }
            continue;
        }
        let id = u32::try_from(vm.vcpus.len()).unwrap_or(u32::MAX);
        let common = find("cpu_common", cpu.instance_id)?;
        let taken = vcpu::qemu_in::normalise(id, cpu, common, accelerator, ticks, policy, report)?;
        let (mut local, left) = lapic::qemu::normalise(apic, accelerator, hint.apic_bus_hz, clock, report)?;
        let mut vcpu = taken.vcpu;
        if accelerator == Accelerator::Tcg && vcpu.run_state == RunState::Halted && waits_for_sipi(apic) {
            vcpu.run_state = RunState::WaitForSipi;
        }
        local.timer.tsc_deadline = vcpu.lapic.timer.tsc_deadline;
        vcpu.lapic = local;
        vm.vcpus.push(vcpu);
        remainder.sections.extend(taken.remainder);
        remainder.sections.push(left);
        tsc_khz = taken.tsc_khz.unwrap_or(tsc_khz);
    }
    let guest_ns = u64::try_from(clock).unwrap_or(0);
    vm.clock = Clock { tsc_khz, guest_ns, tsc_emulated: false };

    let (mut levels, mut pics) = ([0; 2], [None, None]);
    for (instance, (pic, level)) in (0..).zip(pics.iter_mut().zip(&mut levels)) {
        let (taken, lines, left) = irq::qemu::normalise_pic(find("i8259", instance)?, report)?;
        (*pic, *level) = (Some(taken), lines);
        remainder.sections.push(left);
    }
    vm.irq.pic = pics.map(Option::unwrap_or_default);
    vm.irq.lines.isa = u16::from_le_bytes(levels) & !irq::qemu::CASCADE;
    let (ioapic, left) = irq::qemu::normalise_ioapic(find("ioapic", 0)?, report)?;
    vm.irq.ioapic = ioapic;
    remainder.sections.push(left);
    let bridge = find("PIIX3", 0)?;
    vm.irq.pci_links = irq::qemu::normalise_links(pci::config(&bridge.tree).unwrap_or_default());
    vm.irq.lines.pci = pci_lines(state);

    let (pit, left) = timers::qemu_in::normalise_pit(find("i8254", 0)?, find("pcspk", 0)?, clock, report)?;
    vm.timers.pit = pit;
    remainder.sections.extend(left);
    let (rtc, left) = timers::qemu_in::normalise_rtc(find(RTC, 0)?, report)?;
    vm.timers.rtc = rtc;
    remainder.sections.push(left);
    let hpet =
        find("hpet", 0).ok().map(|section| timers::qemu_in::normalise_hpet(section, report)).transpose()?;
    vm.timers.hpet = hpet.map(|(hpet, left)| {
        remainder.sections.push(left);
        hpet
    });
    let (pm, left) = timers::qemu_in::normalise_pm_timer(find("piix4_pm", 0)?, clock)?;
    vm.timers.pm_timer = pm;
    remainder.sections.push(left);

    vm.devices.clear();
    for section in &state.sections {
        others(section, from_xen, vm, &mut remainder, report);
    }
    vm.remainder = Some(remainder);
    Ok(())
}

/// A guest that came from Xen has even APIC ids. Emulation has CPUs between them (`qemu::args`), which wait for ever.
fn is_spare(apic: &Section) -> bool {
    apic.instance_id % 2 == 1 && waits_for_sipi(apic)
}

/// Whether a vCPU of emulation was never started.
fn waits_for_sipi(apic: &Section) -> bool {
    let waits = apic.tree.subsection("apic_sipi").and_then(|part| part.tree.field("wait_for_sipi").ok());
    waits.is_some_and(|waits| waits.as_i64().is_ok_and(|waits| waits != 0))
}

/// A section that no component takes apart.
fn others(section: &Section, from_xen: bool, vm: &mut Vm, remainder: &mut Remainder, report: &mut Report) {
    let name = section.vmsd();
    if CHIPS.contains(&name) {
        return;
    }
    if name == RTC {
        vm.devices.push(devices::qemu::device(section, &section.tree));
    } else if from_xen && name.starts_with(place::WINDOW_DEVICE) {
        report.record(STAGE, record_of(section)).derived(
            "*",
            format!(
                "the window {} for the guest's ACPI tables, which another destination brings as well",
                args::ACPI_WINDOW
            ),
        );
    } else {
        let device = devices::qemu::normalise_device(section, report);
        let to: &mut Vec<Device> =
            if KEPT.contains(&name) { &mut remainder.sections } else { &mut vm.devices };
        to.push(device);
    }
}

/// KVM's clock is a device of its own. Emulation leaves a register of KVM's at zero that KVM sets to one.
fn accelerator(state: &DeviceState) -> Accelerator {
    let has = |name: &str| state.sections.iter().any(|section| section.vmsd() == name);
    let cpu = state.sections.iter().find(|section| section.vmsd() == "cpu");
    let part = |name: &str| cpu.is_some_and(|cpu| cpu.tree.subsection(name).is_some());
    if has("kvmclock") || (part("cpu/tsc_khz") && !part("cpu/poll_control_msr")) {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    }
}

/// The interrupt pins that PCI devices assert. PIIX3's own functions signal on ISA interrupts, but for USB.
fn pci_lines(state: &DeviceState) -> u128 {
    let mut lines = 0;
    for section in &state.sections {
        let Some(address) = devices::qemu::address_of(&section.idstr) else { continue };
        if !has_wire(address) {
            continue;
        }
        for pin in (0..4).filter(|pin| pci::asserts(&section.tree, *pin)) {
            lines |= 1_u128 << (u32::from(address.slot) * 4 + u32::from(pin));
        }
    }
    lines
}

/// Whether a PCI function signals on INTx.
pub(crate) fn has_wire(address: PciAddress) -> bool {
    address.slot != 1 || address.function == 2
}
