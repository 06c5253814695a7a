//! Devices in the form that QEMU gives them: from qemu-xen's EMULATOR_CONTEXT, and to any QEMU.

use hyperferry_qemu_stream::{DeviceState as Sections, Subsection, Tree, Value};
use hyperferry_vm_model::{Device, DeviceState, DeviceSubsection, DeviceValue, PciAddress};

use super::pci;
use crate::report::Report;

/// Sections of EMULATOR_CONTEXT whose truth is in HVM_CONTEXT: there they are dummies.
const DUMMIES: [&str; 7] = ["timer", "cpu_common", "cpu", "apic", "ioapic", "hpet", "kvm-tpr-opt"];
/// Sections that describe the firmware's interface to a QEMU that is left behind.
const FIRMWARE: [&str; 1] = ["fw_cfg"];

/// Wire to model: everything in qemu-xen's EMULATOR_CONTEXT that is a device.
pub(crate) fn normalise(sections: &Sections, report: &mut Report) -> Vec<Device> {
    const STAGE: &str = "Xen -> model";
    let mut devices = Vec::new();
    for section in &sections.sections {
        let name = section.vmsd();
        let mut ledger =
            report.record(STAGE, format_args!("EMULATOR_CONTEXT {} {}", section.idstr, section.instance_id));
        if DUMMIES.contains(&name) {
            ledger.derived("*", "a dummy under Xen; HVM_CONTEXT holds the truth");
            continue;
        }
        if FIRMWARE.contains(&name) {
            ledger.dropped("*", "the firmware's selector state; the destination has its own");
            continue;
        }
        for (field, _) in &section.tree.fields {
            ledger.carried(&[field]);
        }
        for subsection in &section.tree.subsections {
            ledger.carried(&[&subsection.name]);
        }
        devices.push(Device {
            name: name.to_owned(),
            address: address_of(&section.idstr),
            instance: section.instance_id,
            version: section.version_id,
            state: to_model(&section.tree),
        });
    }
    devices
}

/// The PCI address in an idstr: `0000:00:01.3/piix4_pm`.
pub(crate) fn address_of(idstr: &str) -> Option<PciAddress> {
    let (path, _) = idstr.rsplit_once('/')?;
    let (slot, function) = path.split('/').next()?.strip_prefix("0000:00:")?.split_once('.')?;
    let slot = u8::from_str_radix(slot, 16).ok().filter(|slot| *slot < 32)?;
    let function = u8::from_str_radix(function, 16).ok().filter(|function| *function < 8)?;
    Some(PciAddress { slot, function })
}

/// A QEMU tree as the model keeps it.
pub(crate) fn to_model(tree: &Tree) -> DeviceState {
    let value = |value: &Value| value_to_model(value);
    DeviceState {
        fields: tree.fields.iter().map(|(name, field)| (name.clone(), value(field))).collect(),
        subsections: tree
            .subsections
            .iter()
            .map(|subsection| DeviceSubsection {
                name: subsection.name.clone(),
                version: subsection.version,
                state: to_model(&subsection.tree),
            })
            .collect(),
    }
}

fn value_to_model(value: &Value) -> DeviceValue {
    match value {
        Value::Unsigned { width, value } => DeviceValue::Unsigned { width: *width, value: *value },
        Value::Signed { width, value } => DeviceValue::Signed { width: *width, value: *value },
        Value::Bool(value) => DeviceValue::Bool(*value),
        Value::Bytes(bytes) => DeviceValue::Bytes(bytes.clone()),
        Value::Array(values) => DeviceValue::Array(values.iter().map(value_to_model).collect()),
        Value::Struct(tree) => DeviceValue::Struct(to_model(tree)),
    }
}

/// Fields that say the same under two names: in the source's QEMU, in the destination's.
const RENAMED: [(&str, &str); 2] = [("num_timers", "num_timers_save"), ("num_timers_save", "num_timers")];

/// Lays a device's state over what the destination's own QEMU wrote for the same device.
///
/// What only one side has is reported: the destination's stays as it is, the source's is dropped.
pub(crate) fn localise(state: &DeviceState, tree: &mut Tree, place: &str, report: &mut Report) {
    const STAGE: &str = "model -> QEMU";
    for (name, value) in &state.fields {
        let renamed =
            RENAMED.iter().find(|(old, new)| name == old && tree.get(new).is_some()).map(|(_, new)| *new);
        match tree.field_mut(renamed.unwrap_or(name)) {
            Ok(to) => match lay_over(value, to, &format!("{place}.{name}"), report) {
                Ok(()) => report.record(STAGE, place).carried(&[name]),
                Err(why) => report.record(STAGE, place).dropped(name, why),
            },
            Err(_) => report.record(STAGE, place).dropped(name, "the destination's device has no such field"),
        };
    }
    for (name, _) in &tree.fields {
        let known = state.fields.iter().any(|(field, _)| field == name);
        if !known && !RENAMED.iter().any(|(_, new)| new == name) {
            report
                .record(STAGE, place)
                .defaulted(name, "the source's device has no such field; as after reset");
        }
    }
    // A part that the source does not send has its default value, whatever the destination's has.
    let sent = |name: &str| state.subsections.iter().find(|subsection| subsection.name == name);
    tree.subsections.retain(|subsection| sent(&subsection.name).is_some());
    for subsection in &state.subsections {
        let mut body = match tree.subsection(&subsection.name) {
            Some(existing) => existing.tree.clone(),
            None => from_model(&subsection.state, &subsection.name),
        };
        if tree.subsection(&subsection.name).is_some() {
            localise(&subsection.state, &mut body, &format!("{place} {}", subsection.name), report);
        } else {
            report.record(STAGE, place).carried(&[&subsection.name]);
        }
        tree.put_subsection(Subsection {
            name: subsection.name.clone(),
            version: subsection.version,
            tree: body,
        });
    }
}

/// Puts a model's value in the place of a value of the same shape.
fn lay_over(from: &DeviceValue, to: &mut Value, place: &str, report: &mut Report) -> Result<(), String> {
    match (from, &mut *to) {
        (DeviceValue::Unsigned { value: number, .. }, Value::Unsigned { width, value }) => {
            if *width < 8 && number >> (u32::from(*width) * 8) != 0 {
                return Err(format!("{number:#x} does not fit {width} bytes"));
            }
            *value = *number;
        }
        (DeviceValue::Signed { value: number, .. }, Value::Signed { value, .. }) => *value = *number,
        (DeviceValue::Unsigned { value: number, .. }, Value::Signed { value, .. }) => {
            *value = i64::try_from(*number).map_err(|_| format!("{number:#x} does not fit"))?;
        }
        (DeviceValue::Bool(on), Value::Bool(value)) => *value = *on,
        (DeviceValue::Bytes(bytes), Value::Bytes(value)) if bytes.len() == value.len() => {
            value.clone_from(bytes)
        }
        (DeviceValue::Array(from), Value::Array(to)) if from.len() == to.len() => {
            for (index, (from, to)) in from.iter().zip(to).enumerate() {
                lay_over(from, to, &format!("{place}[{index}]"), report)?;
            }
        }
        (DeviceValue::Struct(from), Value::Struct(to)) => localise(from, to, place, report),
        _ => return Err(format!("another shape in the destination: {}", to.describe())),
    }
    Ok(())
}

/// A part of a device that the destination's template does not show.
fn from_model(state: &DeviceState, name: &str) -> Tree {
    let mut tree = Tree::new(name);
    tree.fields =
        state.fields.iter().map(|(name, value)| (name.clone(), value_from_model(value, name))).collect();
    tree.subsections = state
        .subsections
        .iter()
        .map(|subsection| Subsection {
            name: subsection.name.clone(),
            version: subsection.version,
            tree: from_model(&subsection.state, &subsection.name),
        })
        .collect();
    tree
}

fn value_from_model(value: &DeviceValue, name: &str) -> Value {
    match value {
        DeviceValue::Unsigned { width, value } => Value::Unsigned { width: *width, value: *value },
        DeviceValue::Signed { width, value } => Value::Signed { width: *width, value: *value },
        DeviceValue::Bool(value) => Value::Bool(*value),
        DeviceValue::Bytes(bytes) => Value::Bytes(bytes.clone()),
        DeviceValue::Array(values) => {
            Value::Array(values.iter().map(|value| value_from_model(value, name)).collect())
        }
        DeviceValue::Struct(state) => Value::Struct(from_model(state, name)),
    }
}

/// Registers by which a PCI device is known: they must be the same, or QEMU refuses the stream.
const IDENTITY: [(usize, usize, &str); 2] =
    [(0x00, 4, "vendor and device id"), (0x08, 4, "revision and class")];

/// What differs in the identity of two PCI devices.
pub(crate) fn identity_difference(source: &[u8], destination: &[u8]) -> Option<String> {
    IDENTITY.iter().find_map(|(at, length, what)| {
        let (found, wanted) = (source.get(*at..at + length)?, destination.get(*at..at + length)?);
        (found != wanted).then(|| format!("{what} {found:02x?}, the destination's has {wanted:02x?}"))
    })
}

/// The configuration space in the model's form of a device.
pub(crate) fn model_config(device: &Device) -> Option<&[u8]> {
    fn search(state: &DeviceState) -> Option<&[u8]> {
        state.fields.iter().find_map(|(name, value)| match value {
            DeviceValue::Bytes(bytes) if name == "config[0]" && bytes.len() == pci::CONFIG_SIZE => {
                Some(bytes.as_slice())
            }
            DeviceValue::Struct(state) => search(state),
            _ => None,
        })
    }
    search(&device.state)
}
