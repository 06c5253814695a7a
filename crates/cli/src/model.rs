//! The neutral model as a list of paths and values: what `inspect` shows of a checkpoint and `diff` compares.

use hyperferry_vm_model::{Device, DeviceState, DeviceValue, Vm};
use serde_json::Value;

/// A field's path and its value.
pub(crate) type Line = (String, String);

/// Longest run of bytes that is shown as they are.
const SHOWN: usize = 64;

/// Every field of a VM, in the model's order.
pub(crate) fn lines(vm: &Vm) -> Vec<Line> {
    let mut lines = Vec::new();
    // Devices are trees of named values, and read best as such.
    let mut plain = Vm { devices: Vec::new(), ..vm.clone() };
    let sections = plain.remainder.as_mut().map(|remainder| std::mem::take(&mut remainder.sections));
    if let Ok(Value::Object(mut fields)) = serde_json::to_value(&plain) {
        fields.remove("devices");
        for (name, value) in &fields {
            flatten(name, value, &model_text, &mut lines);
        }
    }
    devices("devices", &vm.devices, &mut lines);
    devices("remainder", &sections.unwrap_or_default(), &mut lines);
    lines
}

fn devices(part: &str, devices: &[Device], lines: &mut Vec<Line>) {
    for device in devices {
        let place = device.address.map(|address| format!("{address}/")).unwrap_or_default();
        let path = format!("{part}.{place}{}[{}]", device.name, device.instance);
        lines.push((format!("{path}.version"), device.version.to_string()));
        device_state(&path, &device.state, lines);
    }
}

/// The fields of a JSON document, nested names joined by dots, values as they stand there.
pub(crate) fn flatten_document(document: &Value) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Value::Object(fields) = document {
        fields.iter().for_each(|(name, value)| flatten(name, value, &Value::to_string, &mut lines));
    }
    lines
}

fn flatten(path: &str, value: &Value, text: &dyn Fn(&Value) -> String, lines: &mut Vec<Line>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{path}.{name}"), value, text, lines);
            }
        }
        Value::Array(values) => {
            if let Some(bytes) = bytes(path, values) {
                return lines.push((path.to_owned(), blob(&bytes)));
            }
            for (index, value) in values.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), value, text, lines);
            }
        }
        other => lines.push((path.to_owned(), text(other))),
    }
}

/// Numbers of a model are registers more often than not.
fn model_text(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(number) if number > 9 => format!("{number:#x}"),
            _ => number.to_string(),
        },
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

/// The arrays of a model that are bytes rather than numbers: vector and x87 registers, the RTC's memory.
const BYTES: [&str; 6] = ["st", "xmm", "ymm_high", "zmm_high", "zmm_16_31", "registers"];

fn bytes(path: &str, values: &[Value]) -> Option<Vec<u8>> {
    let name = path.rsplit('.').next()?.split('[').next()?;
    if !BYTES.contains(&name) {
        return None;
    }
    values.iter().map(|value| u8::try_from(value.as_u64()?).ok()).collect()
}

fn blob(bytes: &[u8]) -> String {
    if bytes.len() > SHOWN {
        return format!("{} bytes, crc32 {:#010x}", bytes.len(), crc32fast::hash(bytes));
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn device_state(path: &str, state: &DeviceState, lines: &mut Vec<Line>) {
    for (name, value) in &state.fields {
        device_value(&format!("{path}.{name}"), value, lines);
    }
    for subsection in &state.subsections {
        let path = format!("{path}.{}", subsection.name);
        lines.push((format!("{path}.version"), subsection.version.to_string()));
        device_state(&path, &subsection.state, lines);
    }
}

fn device_value(path: &str, value: &DeviceValue, lines: &mut Vec<Line>) {
    let text = match value {
        DeviceValue::Unsigned { value, .. } => format!("{value:#x}"),
        DeviceValue::Signed { value, .. } => value.to_string(),
        DeviceValue::Bool(value) => value.to_string(),
        DeviceValue::Bytes(bytes) => blob(bytes),
        DeviceValue::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                device_value(&format!("{path}[{index}]"), value, lines);
            }
            return;
        }
        DeviceValue::Struct(state) => return device_state(path, state, lines),
    };
    lines.push((path.to_owned(), text));
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::Vcpu;

    use super::*;

    #[test]
    fn every_value_has_its_path() {
        let field = |name: &str, value| (name.to_owned(), value);
        let state = DeviceState {
            fields: vec![
                field("lcr", DeviceValue::Unsigned { width: 1, value: 3 }),
                field("fifo", DeviceValue::Bytes(vec![0; 65])),
                field("irq", DeviceValue::Array(vec![DeviceValue::Signed { width: 4, value: -1 }])),
            ],
            subsections: vec![],
        };
        let device = Device { name: "serial".into(), address: None, instance: 0, version: 3, state };
        let vm =
            Vm { vcpus: vec![Vcpu { tsc: 0x10, ..Vcpu::default() }], devices: vec![device], ..Vm::default() };
        let lines = lines(&vm);
        let value =
            |path: &str| lines.iter().find(|(found, _)| found == path).map(|(_, value)| value.as_str());
        assert_eq!(value("vcpus[0].tsc"), Some("0x10"));
        assert_eq!(value("vcpus[0].mtrrs.fixed[3]"), Some("0"));
        assert_eq!(value("vcpus[0].vectors.xmm[2]"), Some("00000000000000000000000000000000"));
        assert_eq!(value("devices.serial[0].lcr"), Some("0x3"));
        assert!(value("devices.serial[0].fifo").unwrap().starts_with("65 bytes, crc32 0x"));
        assert_eq!(value("devices.serial[0].irq[0]"), Some("-1"));
    }
}
