//! What a source QEMU said beyond the model goes back over the destination's sections, after all that the model knows.

use hyperferry_qemu_stream::Tree;
use hyperferry_vm_model::{Device, DeviceState, DeviceValue, Remainder, Vm};

use super::{Accelerator, STAGE, Sections, Target};
use crate::{Result, component::devices, report::Report};

/// Fields that mean something to one accelerator only. The other's own were made from the model.
const ACCELERATOR_BOUND: [(&str, &str); 11] = [
    ("i8254", "channels"),
    ("i8254", "channels[0].next_transition_time"),
    ("timer", "cpu_ticks_offset"),
    ("cpu", "env.hflags"),
    ("cpu", "env.mp_state"),
    ("cpu", "env.tsc"),
    ("cpu", "env.segs"),
    ("cpu", "env.ldt"),
    ("cpu", "env.tr"),
    ("cpu_common", "halted"),
    ("cpu_common", "interrupt_request"),
];
/// Deadlines of a local APIC timer, which are others where its clock has another rate.
const APIC_DEADLINES: [&str; 3] = ["initial_count_load_time", "next_time", "timer_expiry"];

/// Optional parts that the destination sent of sections whose source is known to the last field are not the guest's.
pub(super) fn forget_parts(vm: &Vm, remainder: &Remainder, sections: &mut Sections<'_>) {
    for part in &remainder.sections {
        let is_device = vm.devices.iter().any(|device| device.name == part.name);
        if let Some((_, _, tree)) = sections.device(part).filter(|_| !is_device) {
            tree.subsections.clear();
        }
    }
}

/// Lays it over the sections.
pub(super) fn restore(
    vm: &Vm,
    remainder: &Remainder,
    sections: &mut Sections<'_>,
    target: &Target<'_>,
    report: &mut Report,
) -> Result<()> {
    let same_accelerator = remainder.kvm == (target.accelerator == Accelerator::Kvm);
    let same_apic_clock = vm.vcpus.iter().all(|vcpu| vcpu.lapic.timer.bus_hz == target.apic_bus_hz);
    for part in &remainder.sections {
        let mut state = part.state.clone();
        let place = format!("remainder {} {}", part.name, part.instance);
        let mut leave = |report: &mut Report, name: &str, why: &str| {
            if state.field(name).is_some() {
                state.fields.retain(|(field, _)| field != name);
                report.record(STAGE, &place).derived(name, why);
            }
        };
        for (_, field) in ACCELERATOR_BOUND.iter().filter(|(section, _)| *section == part.name) {
            if !same_accelerator {
                leave(report, field, "the other accelerator has its own, made from the model");
            }
        }
        for field in APIC_DEADLINES.iter().filter(|_| part.name == "apic" && !same_apic_clock) {
            leave(report, field, "made anew for the destination's rate");
        }
        match sections.device(part) {
            Some((_, _, tree)) => lay(&state, tree, &place, report),
            None => {
                report.record(STAGE, &place).dropped("*", absent(part));
            }
        }
    }
    Ok(())
}

/// Why it does no harm that the destination lacks a section.
fn absent(part: &Device) -> &'static str {
    match part.name.as_str() {
        "kvmclock" => "KVM's clock; emulation has none",
        "slirp" => "connections of QEMU's own network, which end with the source",
        "kvm-tpr-opt" => "helps Windows on old processors; the destination goes without",
        _ => "the destination has no such section",
    }
}

fn lay(state: &DeviceState, tree: &mut Tree, place: &str, report: &mut Report) {
    for (name, value) in &state.fields {
        let name = devices::qemu::name_in(tree, name);
        let fate = tree.field_mut(name).map_err(|_| "the destination has no such field".to_owned());
        let fate = fate.and_then(|to| devices::qemu::lay_part(value, to));
        let mut ledger = report.record(STAGE, place);
        match fate {
            Ok(()) => ledger.carried(&[name]),
            Err(why) => ledger.dropped(name, why),
        };
    }
    for part in &state.subsections {
        tree.put_subsection(devices::qemu::subsection(part));
        report.record(STAGE, place).carried(&[&part.name]);
    }
}

/// Whether the guest stood when it was saved, or ran: `running`, `paused`, ….
pub(super) fn run_state(remainder: &Remainder) -> Option<&[u8]> {
    match remainder.section("globalstate", 0)?.state.field("runstate")? {
        DeviceValue::Bytes(text) => text.split(|byte| *byte == 0).next(),
        _ => None,
    }
}
