//! From the model to a QEMU stream, in the dialect of the destination's own QEMU.
//!
//! The destination started with [`args`], without a guest, has written a stream of its own: the
//! [`Template`]. It names sections, versions and fields in the very form that the same program will load; the
//! model's values are laid over it.

pub mod args;
mod intake;
mod memory;
mod remainder;
mod stream;

use std::{borrow::Cow, collections::BTreeMap};

use hyperferry_qemu_stream::{Absent, DeviceState, Schema, Section, SectionKey, Template, Tree, Value};
use hyperferry_vm_model::{Device, RunState, Vm};

pub use self::intake::{Hint, Intake, survey};
pub(crate) use self::memory::video_range;
pub use self::memory::{Blocks, Placement};
pub use self::stream::QemuSink;
use crate::{
    Error, Result,
    component::{devices, irq, lapic, pending, timers, vcpu},
    cpu_features, kvm_services,
    refusal::{self, Policy},
    report::Report,
};

const STAGE: &str = "model -> QEMU";

/// What executes the guest on the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM: hardware virtualization.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

impl Accelerator {
    /// The name that QEMU's `-accel` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The destination: what its QEMU is like, and what the user allows.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// What the destination's QEMU wrote without a guest.
    pub template: &'a Template,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// Rate of the local APIC timer's clock, Hz: 10^9 unless the destination was told otherwise.
    pub apic_bus_hz: u64,
    /// The platform shim has the guest's HPET, at the guest's own rate.
    pub platform_hpet: bool,
    /// The host's wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
    /// What the user allows.
    pub policy: &'a Policy,
}

/// Rate of the local APIC timer's clock under QEMU and KVM (hw/intc/apic.c; arch/x86/kvm/lapic.h, APIC_BUS_CYCLE_NS).
pub const APIC_BUS_HZ: u64 = 1_000_000_000;

/// Bits of physical addresses that QEMU's CPU models have unless told otherwise (target/i386/cpu.h,
/// TCG_PHYS_ADDR_BITS).
const PHYSICAL_BITS: u32 = 40;

/// What components need to know about the destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) apic_bus_hz: u64,
    pub(crate) platform_hpet: bool,
    /// QEMU's virtual clock at the instant of the save.
    pub(crate) clock_ns: u64,
    pub(crate) wall_ns: u64,
    /// Bits of the guest's physical addresses.
    pub(crate) physical_bits: u32,
    pub(crate) policy: &'a Policy,
}

/// Model to wire: every section that the destination knows.
pub fn localise(vm: &Vm, destination: &Destination<'_>, report: &mut Report) -> Result<DeviceState> {
    let target = Target {
        accelerator: destination.accelerator,
        apic_bus_hz: destination.apic_bus_hz,
        platform_hpet: destination.platform_hpet,
        clock_ns: timers::qemu::virtual_clock(&vm.timers.pm_timer, vm.clock.guest_ns),
        wall_ns: destination.wall_ns,
        physical_bits: cpu_features::physical_bits(&vm.cpuid).unwrap_or(PHYSICAL_BITS).min(52),
        policy: destination.policy,
    };
    let mut vm = Cow::Borrowed(vm);
    if destination.accelerator == Accelerator::Tcg {
        let vm = vm.to_mut();
        pending::take_back(&mut vm.vcpus, &mut vm.irq, report);
    }
    let vm = vm.as_ref();
    let mut sections = Sections::of(destination.template);
    if target.accelerator == Accelerator::Tcg {
        kvm_services::judge(vm, "QEMU's emulation", destination.policy, report);
    }
    if let Some(rest) = &vm.remainder {
        remainder::forget_parts(vm, rest, &mut sections);
    }
    cpus(vm, &mut sections, &target, report)?;
    generic(vm, &mut sections, destination.policy, report);
    chips(vm, &mut sections, &target, report)?;
    match &vm.remainder {
        Some(rest) => {
            set_run_state(&mut sections, remainder::run_state(rest).unwrap_or(RUNNING))?;
            remainder::restore(vm, rest, &mut sections, &target, report)?;
            if rest.from_xen {
                memory::map_acpi_window(&mut sections)?;
            }
        }
        None => platform(&mut sections)?,
    }
    sections.order_parts();
    report
        .record(STAGE, "clock")
        .carried(&["tsc_khz"])
        .derived("guest_ns", "nothing in QEMU needs it")
        .derived("tsc_emulated", "the destination decides whether it can scale the TSC");
    Error::unless_allowed(report)?;
    Ok(destination.template.device_state(sections.into_trees(), Absent::AsTemplate)?)
}

/// The template's sections, while they are being filled in.
struct Sections<'a> {
    template: &'a Template,
    trees: BTreeMap<SectionKey, Tree>,
}

impl<'a> Sections<'a> {
    fn of(template: &'a Template) -> Self {
        let key = |section: &Section| (section.idstr.clone(), section.instance_id);
        let trees =
            template.state.sections.iter().map(|section| (key(section), section.tree.clone())).collect();
        Self { template, trees }
    }

    /// The section of this name, wherever the device is plugged.
    fn get(&mut self, vmsd: &str, instance: u32) -> Result<&mut Tree> {
        self.find(vmsd, instance).ok_or_else(|| Error::NoSection(format!("{vmsd} {instance}")))
    }

    fn find(&mut self, vmsd: &str, instance: u32) -> Option<&mut Tree> {
        let mut trees = self.trees.iter_mut();
        trees.find(|((idstr, id), _)| vmsd_of(idstr) == vmsd && *id == instance).map(|(_, tree)| tree)
    }

    /// The first section whose name starts like this.
    fn find_prefixed(&mut self, prefix: &str) -> Option<&mut Tree> {
        let mut trees = self.trees.iter_mut();
        trees.find(|((idstr, _), _)| vmsd_of(idstr).starts_with(prefix)).map(|(_, tree)| tree)
    }

    /// The instances of a section, in ascending order.
    fn instances(&self, vmsd: &str) -> Vec<u32> {
        self.trees.keys().filter(|(idstr, _)| vmsd_of(idstr) == vmsd).map(|(_, instance)| *instance).collect()
    }

    /// The section of a device, at the same place on the PCI bus.
    fn device(&mut self, device: &Device) -> Option<(String, Option<&'a Schema>, &mut Tree)> {
        let mut trees = self.trees.iter_mut();
        let found = trees.find(|((idstr, instance), _)| {
            vmsd_of(idstr) == device.name
                && devices::qemu::address_of(idstr) == device.address
                && *instance == device.instance
        });
        let ((idstr, instance), tree) = found?;
        Some((idstr.clone(), self.template.section(idstr, *instance).map(Section::schema), tree))
    }

    /// Puts optional parts in the order in which this QEMU writes them.
    fn order_parts(&mut self) {
        for ((idstr, instance), tree) in &mut self.trees {
            let schema = self.template.section(idstr, *instance).map(Section::schema);
            let place = |name: &str| {
                let known = schema.map(|schema| schema.subsections.as_slice()).unwrap_or_default();
                known.iter().position(|part| part.vmsd == name).unwrap_or(known.len())
            };
            tree.subsections.sort_by_key(|part| place(&part.name));
        }
    }

    fn into_trees(self) -> Vec<(SectionKey, Tree)> {
        self.trees.into_iter().collect()
    }
}

fn vmsd_of(idstr: &str) -> &str {
    idstr.rsplit('/').next().unwrap_or(idstr)
}

fn cpus(vm: &Vm, sections: &mut Sections<'_>, target: &Target<'_>, report: &mut Report) -> Result<()> {
    // The n-th CPU has the n-th local APIC, whose section bears its id. CPUs that the guest lacks stay as after reset.
    let (cpus, apics) = (sections.instances("cpu"), sections.instances("apic"));
    for vcpu in &vm.vcpus {
        let id = vcpu.lapic.id;
        let Some((cpu, apic)) = cpus.iter().zip(&apics).find(|(_, apic)| **apic == id) else {
            return Err(Error::NoSection(format!("for vCPU {}, whose APIC id is {id}", vcpu.id)));
        };
        vcpu::qemu::localise(vcpu, vm.clock.tsc_khz, sections.get("cpu", *cpu)?, target, report)?;
        vcpu::qemu::localise_common(vcpu, sections.get("cpu_common", *cpu)?, target.accelerator)?;
        let local = sections.get("apic", *apic)?;
        lapic::qemu::localise(&vcpu.lapic, vcpu.id, local, target, report)?;
        // Emulation keeps there that a CPU was never started, as all but the first of the template were not.
        if vcpu.run_state != RunState::WaitForSipi {
            local.remove_subsection("apic_sipi");
        }
    }
    let tsc = vm.vcpus.first().map_or(0, |vcpu| vcpu.tsc);
    timers::qemu::localise_clock(tsc, sections.get("timer", 0)?, target)
}

/// Devices whose section says all there is to say about them.
fn generic(vm: &Vm, sections: &mut Sections<'_>, policy: &Policy, report: &mut Report) {
    for device in &vm.devices {
        // Its counters are computed from the devices' pins.
        if device.name == "PCIBUS" {
            report
                .record(STAGE, "device PCIBUS")
                .derived("*", "counted again from the devices' interrupt pins");
            continue;
        }
        let Some((idstr, schema, tree)) = sections.device(device) else {
            leave_behind(device, policy, report);
            continue;
        };
        let place = format!("device {idstr}");
        let identity = match (devices::qemu::model_config(device), devices::pci::config(tree)) {
            (Some(source), Some(destination)) => devices::qemu::identity_difference(source, destination),
            _ => None,
        };
        if let Some(difference) = identity {
            let what = format!("{idstr} is another device on the destination: {difference}");
            policy.refuse(
                report,
                refusal::DEVICE,
                what,
                "use the machine type and devices that `hyperferry qemu-args` names",
            );
            continue;
        }
        devices::qemu::localise(&device.state, tree, schema, &place, report);
    }
}

/// A device that the destination does not have.
fn leave_behind(device: &Device, policy: &Policy, report: &mut Report) {
    let place = device.address.map_or_else(String::new, |address| format!(" at {address}"));
    let mut ledger = report.record(STAGE, format_args!("device {}{place}", device.name));
    // The switch that paravirtual drivers use; without them it is idle. They are refused on their own account.
    if device.name == "platform" {
        ledger.dropped("*", "Xen's platform device; a guest without paravirtual drivers does not use it");
        return;
    }
    ledger.dropped("*", "the destination has no such device");
    let what = format!("the guest has a {}{place} and the destination has none", device.name);
    policy.refuse(report, refusal::DEVICE, what, "remove the device from the guest before the move");
}

fn chips(vm: &Vm, sections: &mut Sections<'_>, target: &Target<'_>, report: &mut Report) -> Result<()> {
    let pins = interrupt_pins(vm, sections);
    let wiring = irq::qemu::wire(&vm.irq, &pins, target.policy, report);
    let lines = vm.irq.lines.isa;
    irq::qemu::localise_ioapic(&vm.irq.ioapic, &wiring, lines, sections.get("ioapic", 0)?)?;
    for (instance, pic) in (0..).zip(&vm.irq.pic) {
        let [low, high] = lines.to_le_bytes();
        // Emulation keeps the slave's output as a line of the master, KVM does not.
        let [_, slave] = &vm.irq.pic;
        let cascade = u8::from(target.accelerator == Accelerator::Tcg && slave.int_output) << 2;
        let (master, levels) = if instance == 0 { (true, low | cascade) } else { (false, high) };
        irq::qemu::localise_pic(pic, master, levels, sections.get("i8259", instance)?, report)?;
    }
    report
        .record(STAGE, "irq")
        .derived("pci_links", "PIIX3 configuration registers 0x60 to 0x63")
        .derived("lines", "levels of the controllers' inputs");
    let bridge = sections.get("PIIX3", 0)?;
    for (pirq, route) in wiring.routes.iter().enumerate() {
        let register = 0x60 + pirq;
        let is = devices::pci::config(bridge).and_then(|config| config.get(register)).copied();
        if is.is_none_or(|is| irq::qemu::leads_to(is) != irq::qemu::leads_to(*route)) {
            devices::pci::set_config_byte(bridge, register, *route)?;
        }
    }
    let bus = (0..).zip(wiring.levels);
    for (pirq, level) in bus.clone() {
        bridge.set_i64_at("pci_irq_levels_vmstate", pirq, i64::from(level > 0))?;
    }
    let counters = sections.get("PCIBUS", 0)?;
    for (pirq, level) in bus {
        counters.set_i64_at("irq_count", pirq, level.into())?;
    }

    let hpet_legacy = vm.timers.hpet.as_ref().is_some_and(|hpet| hpet.enabled() && hpet.legacy_replacement());
    timers::qemu::localise_pit(&vm.timers.pit, hpet_legacy, sections.get("i8254", 0)?, target, report)?;
    timers::qemu::localise_speaker(&vm.timers.pit, sections.get("pcspk", 0)?, report)?;
    timers::qemu::localise_rtc(&vm.timers.rtc, sections.get("mc146818rtc", 0)?, target, report)?;
    timers::qemu::localise_pm_timer(&vm.timers.pm_timer, sections.get("piix4_pm", 0)?, report)?;
    match (&vm.timers.hpet, sections.find("hpet", 0)) {
        (Some(_), None) if target.platform_hpet => timers::qemu::hand_over_hpet(report),
        (Some(hpet), Some(tree)) => timers::qemu::localise_hpet(hpet, tree, target, report)?,
        (Some(hpet), None) if hpet.enabled() => {
            let what = "the HPET's counter runs and the destination has no HPET";
            target.policy.refuse(report, refusal::HPET, what, "start the destination with -machine hpet=on");
        }
        (Some(_), None) => {
            report.record(STAGE, "timers.hpet").dropped("*", "not in use, and the destination has none");
        }
        (None, _) => {}
    }
    Ok(())
}

/// The interrupt pins of the PCI devices that both sides have.
fn interrupt_pins(vm: &Vm, sections: &mut Sections<'_>) -> Vec<irq::qemu::IntxPin> {
    let mut pins = Vec::new();
    for device in &vm.devices {
        let Some(address) = device.address else { continue };
        let Some((_, _, tree)) = sections.device(device) else { continue };
        let Some(pin) = devices::pci::config(tree).and_then(devices::pci::intx_pin) else { continue };
        // PIIX3's IDE and ACPI functions signal on ISA interrupts 14, 15 and 9.
        if address.slot == 1 && address.function != 2 {
            continue;
        }
        pins.push(irq::qemu::IntxPin { address, pin, asserted: devices::pci::asserts(tree, pin) });
    }
    pins
}

/// What is true of every Xen HVM guest and of no freshly started QEMU.
fn platform(sections: &mut Sections<'_>) -> Result<()> {
    // RAM behind the BIOS area: Xen's firmware lives in RAM there, QEMU's would show its ROM (82441FX, PAM0 to PAM6).
    // Each half of a register is an area; bit 0 reads RAM, bit 1 writes it. A guest that was born under QEMU has said so.
    let bridge = sections.get("I440FX", 0)?;
    for register in 0x59..=0x5f {
        let found = devices::pci::config(bridge).and_then(|config| config.get(register).copied());
        let found = found.unwrap_or_default();
        let halves = if register == 0x59 { &[4][..] } else { &[0, 4] };
        let unread = halves.iter().filter(|shift| found >> **shift & 1 == 0);
        let value = unread.fold(found, |value, shift| value | 3 << shift);
        devices::pci::set_config_byte(bridge, register, value)?;
    }
    // The firmware has run: nobody will patch ACPI tables any more.
    if let Some(tree) = sections.find("acpi_build", 0) {
        tree.set_u64("patched", 1)?;
    }
    set_run_state(sections, RUNNING)?;
    memory::map_acpi_window(sections)?;
    Ok(())
}

/// The run state of a guest that goes on by itself.
const RUNNING: &[u8] = b"running";

/// Whether the guest goes on by itself once it is loaded.
fn set_run_state(sections: &mut Sections<'_>, text: &[u8]) -> Result<()> {
    let Some(tree) = sections.find("globalstate", 0) else { return Ok(()) };
    let mut state = match tree.field_mut("runstate")? {
        Value::Bytes(bytes) => vec![0; bytes.len()],
        _ => Vec::new(),
    };
    for (to, from) in state.iter_mut().zip(text) {
        *to = *from;
    }
    tree.set_bytes("runstate", &state)?;
    tree.set_u64("size", text.len() as u64 + 1)?;
    Ok(())
}
