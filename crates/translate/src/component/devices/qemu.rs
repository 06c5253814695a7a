//! Devices in the form that QEMU gives them: from qemu-xen's EMULATOR_CONTEXT, and to any QEMU.

use hyperferry_qemu_stream::{
    DeviceState as Sections, Schema, Section, Subsection, Tree, Value,
    vmstate::schema::{Condition, Kind, Shape},
};
use hyperferry_vm_model::{Device, DeviceState, DeviceSubsection, DeviceValue, PciAddress};

use super::pci;
use crate::{component::fields, report::Report};

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
        devices.push(device(section, &section.tree));
    }
    devices
}

/// Wire to model: a device of a QEMU, all of it.
pub(crate) fn normalise_device(section: &Section, report: &mut Report) -> Device {
    let mut ledger = report.record(fields::STAGE, fields::record_of(section));
    for (field, _) in &section.tree.fields {
        ledger.carried(&[field]);
    }
    for subsection in &section.tree.subsections {
        ledger.carried(&[&subsection.name]);
    }
    device(section, &section.tree)
}

/// A section in the model's form, with this for its state.
pub(crate) fn device(section: &Section, tree: &Tree) -> Device {
    Device {
        name: section.vmsd().to_owned(),
        address: address_of(&section.idstr),
        instance: section.instance_id,
        version: section.version_id,
        state: to_model(tree),
    }
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
pub(crate) fn localise(
    state: &DeviceState,
    tree: &mut Tree,
    schema: Option<&Schema>,
    place: &str,
    report: &mut Report,
) {
    const STAGE: &str = "model -> QEMU";
    for (name, value) in &state.fields {
        let name = name_in(tree, name);
        let fate = match tree.field_mut(name) {
            Ok(to) => lay_over(value, to, shape_of(schema, name), &format!("{place}.{name}"), report),
            // Present on a condition that the source meets and a freshly started device does not.
            Err(_) if conditional(schema, name) => {
                tree.fields.push((name.to_owned(), value_from_model(value, name)));
                Ok(())
            }
            Err(_) => Err("the destination's device has no such field".to_owned()),
        };
        let mut ledger = report.record(STAGE, place);
        match fate {
            Ok(()) => ledger.carried(&[name]),
            Err(why) => ledger.dropped(name, why),
        };
    }
    // And the other way round: a field whose condition no longer holds is not there.
    for field in schema.map(|schema| schema.fields.as_slice()).unwrap_or_default() {
        if field.when.as_ref().is_some_and(|condition| !holds(condition, tree)) {
            tree.fields.retain(|(name, _)| *name != field.name);
        }
    }
    for (name, _) in &tree.fields {
        let known = state.fields.iter().any(|(field, _)| field == name);
        if !known && !RENAMED.iter().any(|(_, new)| new == name) {
            let note = "the source's device has no such field; as after reset";
            report.record(STAGE, place).defaulted(name, note);
        }
    }
    // A part that the source does not send has its default value, whatever the destination's has.
    let sent = |name: &str| state.subsections.iter().any(|subsection| subsection.name == name);
    tree.subsections.retain(|subsection| sent(&subsection.name));
    for subsection in &state.subsections {
        let name = &subsection.name;
        let body = match tree.subsection(name) {
            Some(existing) => {
                let mut body = existing.tree.clone();
                let schema = schema.and_then(|schema| schema.subsection(name));
                localise(&subsection.state, &mut body, schema, &format!("{place} {name}"), report);
                body
            }
            None => {
                report.record(STAGE, place).carried(&[name]);
                from_model(&subsection.state, name)
            }
        };
        tree.put_subsection(Subsection { name: name.clone(), version: subsection.version, tree: body });
    }
}

fn shape_of<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Shape> {
    schema?.fields.iter().find(|field| field.name == name).map(|field| &field.shape)
}

fn conditional(schema: Option<&Schema>, name: &str) -> bool {
    schema.is_some_and(|schema| schema.fields.iter().any(|field| field.name == name && field.when.is_some()))
}

fn holds(condition: &Condition, tree: &Tree) -> bool {
    let found = tree.field(&condition.field).and_then(|field| field.as_i64());
    found.is_ok_and(|found| {
        condition.is.is_none_or(|wanted| found == wanted)
            && condition.is_not.is_none_or(|other| found != other)
    })
}

/// The name that a tree has for a field.
pub(crate) fn name_in<'a>(tree: &Tree, name: &'a str) -> &'a str {
    let renamed = RENAMED.iter().find(|(old, new)| name == *old && tree.get(new).is_some());
    renamed.map_or(name, |(_, new)| *new)
}

/// Puts what the model has of a value in its place, and leaves the rest of a structure as it is.
pub(crate) fn lay_part(from: &DeviceValue, to: &mut Value) -> Result<(), String> {
    match (from, &mut *to) {
        (DeviceValue::Struct(from), Value::Struct(to)) => {
            for (name, value) in &from.fields {
                lay_part(value, to.field_mut(name).map_err(|error| error.to_string())?)?;
            }
            Ok(())
        }
        (DeviceValue::Array(from), Value::Array(to)) if from.len() == to.len() => {
            from.iter().zip(to).try_for_each(|(from, to)| lay_part(from, to))
        }
        _ => lay_over(from, to, None, "", &mut Report::default()),
    }
}

/// An optional part of a section.
pub(crate) fn subsection(part: &DeviceSubsection) -> Subsection {
    let tree = from_model(&part.state, &part.name);
    Subsection { name: part.name.clone(), version: part.version, tree }
}

/// The schema of element `index` of a field.
fn element_schema(shape: Option<&Shape>, index: usize) -> Option<&Schema> {
    let kind = match shape? {
        Shape::One(kind) | Shape::Array(_, kind) => kind,
        Shape::Each(kinds) => kinds.get(index)?,
    };
    match kind {
        Kind::Struct(schema) => Some(schema),
        _ => None,
    }
}

/// Puts a model's value in the place of a value of the same shape.
fn lay_over(
    from: &DeviceValue,
    to: &mut Value,
    shape: Option<&Shape>,
    place: &str,
    report: &mut Report,
) -> Result<(), String> {
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
                let place = format!("{place}[{index}]");
                match (from, to, element_schema(shape, index)) {
                    (DeviceValue::Struct(from), Value::Struct(to), schema) => {
                        localise(from, to, schema, &place, report)
                    }
                    (from, to, _) => lay_over(from, to, None, &place, report)?,
                }
            }
        }
        (DeviceValue::Struct(from), Value::Struct(to)) => {
            localise(from, to, element_schema(shape, 0), place, report)
        }
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
