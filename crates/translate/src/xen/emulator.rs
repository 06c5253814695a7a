//! EMULATOR_CONTEXT from the model, in the dialect of the host's device model.

use hyperferry_qemu_stream::{DeviceState, Section, Value};
use hyperferry_vm_model::{Device, PciAddress, Vm};
use hyperferry_xen_stream::libxl;

use super::{Template, config};
use crate::{
    Error, Result,
    component::{
        devices::{self, pci},
        timers,
    },
    refusal::{self, Policy},
    report::Report,
};

const STAGE: &str = "model -> Xen";
/// What a vCPU has in QEMU's stream, in order: under Xen it says nothing, and QEMU looks for it all the same.
const VCPU_DUMMIES: [&str; 3] = ["cpu_common", "cpu", "apic"];
/// Chips that Xen emulates itself where QEMU's `pc` has them: their state is in HVM_CONTEXT.
const XENS_OWN: [&str; 5] = ["i8259", "i8254", "pcspk", "kvmclock", "kvm-tpr-opt"];
/// Sections of the machine rather than of a device, which a Xen machine does not send.
const QEMUS_OWN: [&str; 5] = ["acpi_build", "globalstate", "slirp", "fw_cfg", "vmmouse"];

/// The section that counts who asserts the wires of PCI bus 0.
const ROOT_BUS: &str = "PCIBUS";

/// Model to wire: the device model's state.
pub(super) fn localise(
    vm: &Vm,
    template: &Template,
    policy: &Policy,
    report: &mut Report,
) -> Result<libxl::EmulatorContext> {
    let mut sections = dummies(vm, template);
    set_clock(vm, &mut sections)?;
    for device in &vm.devices {
        sections.extend(section(device, template, policy, report));
    }
    sections.sort_by_key(|section| (template.rank(section.vmsd()), section.instance_id));
    group_vcpus(&mut sections);
    count_interrupts(&mut sections)?;
    number(&mut sections, template);
    let blob = DeviceState { sections, vmdesc: None }.encode_emulator_context()?;
    Ok(libxl::EmulatorContext { emulator_id: libxl::EmulatorId::QEMU_UPSTREAM, index: 0, blob })
}

/// Sections that hold nothing of the guest, as the template has them.
fn dummies(vm: &Vm, template: &Template) -> Vec<Section> {
    let fw_cfg = config::names_kernel(vm);
    let given = |section: &&Section| match section.vmsd() {
        "timer" | "ioapic" | "hpet" => true,
        "fw_cfg" => fw_cfg,
        _ => false,
    };
    let mut sections: Vec<_> = template.sections.iter().filter(given).cloned().collect();
    for instance in (0..).zip(&vm.vcpus).map(|(instance, _)| instance) {
        for vmsd in VCPU_DUMMIES {
            sections.extend(vcpu_dummy(template, vmsd, instance));
        }
    }
    sections
}

/// A guest whose firmware put the PM timer where Xen has none is served by the device model's own, which computes it from
/// its virtual clock.
fn set_clock(vm: &Vm, sections: &mut [Section]) -> Result<()> {
    let own = timers::xen::io_ports_location(&vm.timers.pm_timer).is_none();
    let clock = sections.iter_mut().find(|section| section.vmsd() == "timer").filter(|_| own);
    if let Some(section) = clock {
        section.tree.set_i64("cpu_clock_offset", i64::try_from(vm.clock.guest_ns).unwrap_or(0))?;
    }
    Ok(())
}

/// One vCPU's dummy: the template's of that number, or its last made into one.
fn vcpu_dummy(template: &Template, vmsd: &str, instance: u32) -> Option<Section> {
    let of_kind = || template.sections.iter().filter(|section| section.vmsd() == vmsd);
    if let Some(same) = of_kind().find(|section| section.instance_id == instance) {
        return Some(same.clone());
    }
    let mut section = of_kind().next_back()?.clone();
    section.instance_id = instance;
    if let Ok(id) = section.tree.field_mut("id") {
        *id = Value::Unsigned { width: 1, value: instance.into() };
    }
    Some(section)
}

/// A device's section: the template's of its kind, with the guest's state laid over it.
fn section(device: &Device, template: &Template, policy: &Policy, report: &mut Report) -> Option<Section> {
    let place = device.address.map_or_else(String::new, |address| format!(" at {address}"));
    let name = device.name.as_str();
    if XENS_OWN.contains(&name) {
        report.record(STAGE, format_args!("device {name}")).derived("*", "Xen has it itself, in HVM_CONTEXT");
        return None;
    }
    if QEMUS_OWN.contains(&name) {
        report
            .record(STAGE, format_args!("device {name}"))
            .dropped("*", "belongs to the QEMU that is left behind");
        return None;
    }
    if name == ROOT_BUS {
        report.record(STAGE, "device PCIBUS").derived("*", "counted again from the devices' interrupt pins");
        return template.section(name).cloned();
    }
    let Some(mut section) = template.section(name).cloned() else {
        report
            .record(STAGE, format_args!("device {name}{place}"))
            .dropped("*", "the Xen host's device model has none");
        let what = format!("the guest has a {name}{place}, and no guest in the template has one");
        let remedy = "remove the device from the guest before the move, or give a save file of a guest that has it \
                      (--template)";
        policy.refuse(report, refusal::DEVICE, what, remedy);
        return None;
    };
    let difference = match (devices::qemu::model_config(device), pci::config(&section.tree)) {
        (Some(source), Some(host)) => devices::qemu::identity_difference(source, host),
        _ => None,
    };
    if let Some(difference) = difference {
        let what = format!("{name}{place} is another device on the Xen host: {difference}");
        policy.refuse(report, refusal::DEVICE, what, "remove the device from the guest before the move");
        return None;
    }
    section.idstr = device.address.map_or_else(|| name.to_owned(), |address| format!("{address}/{name}"));
    section.instance_id = device.instance;
    // The overlay tells its account as one towards QEMU.
    let mut account = Report::default();
    let schema = section.schema().clone();
    devices::qemu::localise(
        &device.state,
        &mut section.tree,
        Some(&schema),
        &format!("device {}", section.idstr),
        &mut account,
    );
    report.fields.extend(account.fields.into_iter().map(|mut line| {
        line.stage = STAGE;
        line
    }));
    report.findings.extend(account.findings);
    Some(section)
}

/// Sorted by kind, the vCPUs' sections stand apart; QEMU has one vCPU's together.
fn group_vcpus(sections: &mut [Section]) {
    let is_vcpu = |section: &Section| VCPU_DUMMIES.contains(&section.vmsd());
    let Some(first) = sections.iter().position(is_vcpu) else { return };
    let count = sections.iter().skip(first).take_while(|section| is_vcpu(section)).count();
    if let Some(group) = sections.get_mut(first..first + count) {
        group.sort_by_key(|section| section.instance_id);
    }
}

/// The root bus counts who asserts each of its wires: 4 * slot + pin under Xen (hw/i386/xen/xen-hvm.c,
/// xen_pci_slot_get_pirq).
fn count_interrupts(sections: &mut [Section]) -> Result<()> {
    let mut counts = [0_u32; 128];
    for section in sections.iter() {
        let Some(PciAddress { slot, .. }) = devices::qemu::address_of(&section.idstr) else { continue };
        for pin in 0..4 {
            let asserted = pci::asserts(&section.tree, pin);
            if let Some(count) = counts.get_mut(usize::from(slot) * 4 + usize::from(pin)) {
                *count += u32::from(asserted);
            }
        }
    }
    let Some(bus) = sections.iter_mut().find(|section| section.vmsd() == ROOT_BUS) else {
        return Err(Error::NoSection(ROOT_BUS.to_owned()));
    };
    for (wire, count) in counts.iter().enumerate() {
        bus.tree.set_u64_at("irq_count", wire, (*count).into())?;
    }
    Ok(())
}

/// Labels as the template has them: the first section's is its own, the others count on from the second's.
fn number(sections: &mut [Section], template: &Template) {
    let label = |index: usize| template.sections.get(index).map_or(0, |section| section.section_id);
    if let Some((first, others)) = sections.split_first_mut() {
        first.section_id = label(0);
        for (section, id) in others.iter_mut().zip(label(1)..) {
            section.section_id = id;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyperferry_vm_model::DeviceValue;

    use hyperferry_vm_model::GuestConfig;

    use super::*;

    fn template() -> Template {
        Template::bundled(&GuestConfig::default()).unwrap()
    }

    /// A guest with the template's device of this kind, in another slot.
    fn guest_with(vmsd: &str, slot: u8) -> Vm {
        let template = template();
        let section = template.section(vmsd).unwrap();
        let device = Device {
            name: vmsd.into(),
            address: Some(PciAddress { slot, function: 0 }),
            instance: 0,
            version: section.version_id,
            state: devices::qemu::to_model(&section.tree),
        };
        let bus = Device { name: ROOT_BUS.into(), address: None, ..device.clone() };
        Vm {
            devices: vec![bus, device],
            vcpus: vec![hyperferry_vm_model::Vcpu::default(); 3],
            ..Vm::default()
        }
    }

    fn sections(vm: &Vm) -> DeviceState {
        let record = localise(vm, &template(), &Policy::default(), &mut Report::default()).unwrap();
        DeviceState::decode_emulator_context(&record.blob, 0, hyperferry_wire::StreamPath::root()).unwrap()
    }

    #[test]
    fn a_device_gets_its_section_where_it_is() {
        let state = sections(&guest_with("e1000", 7));
        assert!(state.section("0000:00:07.0/e1000", 0).is_some());
        let vcpus: Vec<_> = state.sections.iter().filter(|section| section.vmsd() == "apic").collect();
        assert_eq!(vcpus.iter().map(|section| section.instance_id).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(vcpus[2].tree.field("id").unwrap().as_u64().unwrap(), 2);
        let labels: BTreeSet<_> = state.sections.iter().map(|section| section.section_id).collect();
        assert_eq!(labels.len(), state.sections.len());
    }

    #[test]
    fn an_asserted_pin_is_counted_on_its_wire() {
        let mut vm = guest_with("e1000", 7);
        for (name, value) in &mut vm.devices[1].state.fields {
            let DeviceValue::Struct(parent) = value else { continue };
            let levels = parent.fields.iter_mut().find(|(field, _)| field == "irq_state").unwrap();
            assert_eq!(name, "parent_obj");
            levels.1 = match &levels.1 {
                DeviceValue::Bytes(_) => DeviceValue::Bytes([[0, 0, 0, 1], [0; 4], [0; 4], [0; 4]].concat()),
                other => panic!("{other:?}"),
            };
        }
        let state = sections(&vm);
        let counts = state.section(ROOT_BUS, 0).unwrap().tree.field("irq_count").unwrap().as_u64s().unwrap();
        assert_eq!(counts.iter().position(|count| *count == 1), Some(28));
        assert_eq!(counts.iter().sum::<u64>(), 1);
    }

    #[test]
    fn a_device_that_no_template_has_is_refused() {
        let mut vm = guest_with("e1000", 7);
        vm.devices[1].name = "nvme".into();
        let mut report = Report::default();
        localise(&vm, &template(), &Policy::default(), &mut report).unwrap();
        assert_eq!(report.refusals().map(|finding| finding.name).collect::<Vec<_>>(), ["device"]);
    }
}
