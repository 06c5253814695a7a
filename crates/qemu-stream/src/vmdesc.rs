//! VMDESCRIPTION (0x06): the stream's own account of its sections, as JSON, after the last of them.
//!
//! Source: `migration/savevm.c`, `migration/vmstate.c`, QEMU 7.2 and 10.0. Page: `formats/qemu/sections.md`.

use hyperferry_wire::{Encoder, Error, PAGE_SIZE, Result, StreamPath};
use serde::Deserialize;
use serde_json::json;

use crate::device_state::Section;
use crate::registry::Registry;
use crate::section::SectionKind;
use crate::vmstate::schema::{Context, Schema, SchemaText};
use crate::vmstate::value::{Tree, Value};

/// Longest description taken. A full pc machine's has 120 KiB.
pub const VMDESC_LIMIT: u64 = 16 << 20;

/// Bytes before the JSON: end of sections, type, length.
pub(crate) const VMDESC_LEAD: usize = 6;

/// A description with the schemas in it.
#[derive(Clone, Debug)]
pub struct VmDesc {
    text: String,
    devices: Vec<Device>,
}

/// One section as the description tells it.
#[derive(Clone, Debug)]
struct Device {
    idstr: String,
    instance_id: u32,
    schema: Schema,
}

#[derive(Deserialize)]
struct DeviceText {
    name: String,
    instance_id: u32,
    #[serde(flatten)]
    schema: SchemaText,
}

impl VmDesc {
    /// Reads the JSON text, which stands at `offset` of the stream.
    pub fn parse(text: &[u8], path: &StreamPath, offset: u64) -> Result<Self> {
        let path = path.child("VMDESCRIPTION");
        let invalid = |found: String| Error::invalid(&path, offset, "json", found, "QEMU's vmdesc");
        let text = std::str::from_utf8(text).map_err(|error| invalid(error.to_string()))?;
        // By way of a value, for QEMU repeats keys where a field holds a list of structs.
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let Some(list) = value.get("devices").and_then(serde_json::Value::as_array) else {
            return Err(invalid("no list of devices".to_owned()));
        };
        let registry = Registry::builtin();
        let context = Context {
            variant: "",
            named: &|_| None,
            canonical: &|vmsd, field| registry.canonical(vmsd, field),
            opaque: true,
        };
        let mut devices = Vec::new();
        for value in list {
            let device = DeviceText::deserialize(value).map_err(|error| invalid(error.to_string()))?;
            let vmsd = crate::section::vmsd_of(&device.name);
            let schema = Schema::from_text(&device.schema, vmsd, &context)
                .map_err(|error| invalid(error.to_string()))?;
            devices.push(Device { idstr: device.name, instance_id: device.instance_id, schema });
        }
        Ok(Self { text: text.to_owned(), devices })
    }

    /// Describes sections as QEMU would: JSON that a reader without our schemas needs, this crate included.
    pub fn of(sections: &[Section]) -> Self {
        let text = json!({
            "page_size": PAGE_SIZE,
            "devices": sections.iter().map(describe_section).collect::<Vec<_>>(),
        });
        let device = |section: &Section| Device {
            idstr: section.idstr.clone(),
            instance_id: section.instance_id,
            schema: section.schema().clone(),
        };
        Self { text: text.to_string(), devices: sections.iter().map(device).collect() }
    }

    /// The JSON as it stands in the stream.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The field list of a section.
    pub fn schema(&self, idstr: &str, instance_id: u32) -> Option<&Schema> {
        let mut devices = self.devices.iter();
        let device = devices.find(|device| device.idstr == idstr && device.instance_id == instance_id)?;
        Some(&device.schema)
    }

    /// Appends type, length and JSON. The end of sections stands before it.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.u8(SectionKind::VmDescription.byte());
        encoder.u32(u32::try_from(self.text.len()).unwrap_or(u32::MAX)).bytes(self.text.as_bytes());
    }

    /// Finds the description at the end of device state: end of sections, type, length that leads exactly to
    /// the end of `bytes`, JSON. Gives the position of the end of sections and that of the JSON.
    pub(crate) fn locate(bytes: &[u8]) -> Option<(usize, usize)> {
        let mut starts = bytes.windows(VMDESC_LEAD + 1).enumerate();
        let (at, _) = starts.find(|(at, window)| match window {
            [0, 6, a, b, c, d, b'{'] => {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                bytes.len() - at - VMDESC_LEAD == length
            }
            _ => false,
        })?;
        Some((at, at + VMDESC_LEAD))
    }
}

fn describe_section(section: &Section) -> serde_json::Value {
    let mut device = json!({ "name": section.idstr, "instance_id": section.instance_id });
    merge(&mut device, describe_tree(&section.tree, section.version_id));
    device
}

fn describe_tree(tree: &Tree, version: u32) -> serde_json::Value {
    let mut fields = Vec::new();
    for (name, value) in &tree.fields {
        describe_field(name, value, &mut fields);
    }
    let mut described = json!({ "vmsd_name": tree.vmsd, "version": version, "fields": fields });
    if !tree.subsections.is_empty() {
        let parts = tree.subsections.iter().map(|part| describe_tree(&part.tree, part.version));
        merge(&mut described, json!({ "subsections": parts.collect::<Vec<_>>() }));
    }
    described
}

/// Arrays of plain values are one entry with a length; of structs, whose elements may differ, one entry each.
fn describe_field(name: &str, value: &Value, fields: &mut Vec<serde_json::Value>) {
    let Value::Array(values) = value else {
        let mut field = json!({ "name": name });
        merge(&mut field, describe_value(value));
        return fields.push(field);
    };
    let structs = values.iter().any(|value| matches!(value, Value::Struct(_)));
    if !structs && let Some(first) = values.first() {
        let mut field = json!({ "name": name });
        if values.len() > 1 {
            merge(&mut field, json!({ "array_len": values.len() }));
        }
        merge(&mut field, describe_value(first));
        return fields.push(field);
    }
    for (index, value) in values.iter().enumerate() {
        let mut field = json!({ "name": name });
        if index + 1 < values.len() {
            merge(&mut field, json!({ "index": index }));
        }
        merge(&mut field, describe_value(value));
        fields.push(field);
    }
}

fn describe_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Unsigned { width, .. } | Value::Signed { width, .. } => {
            json!({ "type": value.describe(), "size": width })
        }
        Value::Bool(_) => json!({ "type": "bool", "size": 1 }),
        Value::Bytes(bytes) => json!({ "type": "buffer", "size": bytes.len() }),
        // Versions of nested structs do not stand in the stream.
        Value::Struct(tree) => json!({ "type": "struct", "struct": describe_tree(tree, 0) }),
        Value::Array(_) => json!({}),
    }
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    if let (Some(into), serde_json::Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}
