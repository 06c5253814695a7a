//! VMDESCRIPTION (0x06): the stream's own account of its sections, as JSON, after the last of them.
//!
//! Source: `migration/savevm.c`, `migration/vmstate.c`, QEMU 7.2 and 10.0. Page: `formats/qemu/sections.md`.

use std::sync::Arc;

use hyperferry_wire::{Encoder, Error, PAGE_SIZE, Result, StreamPath};
use serde::{Deserialize, Serialize};

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
    schema: Arc<Schema>,
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
            devices.push(Device {
                idstr: device.name,
                instance_id: device.instance_id,
                schema: Arc::new(schema),
            });
        }
        Ok(Self { text: text.to_owned(), devices })
    }

    /// Describes sections as QEMU would: JSON that a reader without our schemas needs, this crate included.
    pub fn of(sections: &[Section]) -> Self {
        let devices = sections.iter().map(|section| DeviceOut {
            name: &section.idstr,
            instance_id: section.instance_id,
            body: TreeOut::of(&section.tree, section.version_id),
        });
        let description = Description { page_size: PAGE_SIZE, devices: devices.collect() };
        // Strings and numbers under fixed keys: there is nothing in it that JSON cannot hold.
        let text = serde_json::to_string(&description).unwrap_or_default();
        let device = |section: &Section| Device {
            idstr: section.idstr.clone(),
            instance_id: section.instance_id,
            schema: section.shared_schema(),
        };
        Self { text, devices: sections.iter().map(device).collect() }
    }

    /// The JSON as it stands in the stream.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The field list of a section.
    pub fn schema(&self, idstr: &str, instance_id: u32) -> Option<&Arc<Schema>> {
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

/// What is written, in QEMU's order of keys.
#[derive(Serialize)]
struct Description<'a> {
    page_size: usize,
    devices: Vec<DeviceOut<'a>>,
}

#[derive(Serialize)]
struct DeviceOut<'a> {
    name: &'a str,
    instance_id: u32,
    #[serde(flatten)]
    body: TreeOut<'a>,
}

#[derive(Serialize)]
struct TreeOut<'a> {
    vmsd_name: &'a str,
    version: u32,
    fields: Vec<FieldOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subsections: Vec<TreeOut<'a>>,
}

#[derive(Serialize)]
struct FieldOut<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    array_len: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    #[serde(rename = "struct", skip_serializing_if = "Option::is_none")]
    body: Option<TreeOut<'a>>,
}

impl<'a> TreeOut<'a> {
    fn of(tree: &'a Tree, version: u32) -> Self {
        let mut fields = Vec::with_capacity(tree.fields.len());
        for (name, value) in &tree.fields {
            FieldOut::push(name, value, &mut fields);
        }
        let parts = tree.subsections.iter();
        let subsections = parts.map(|part| Self::of(&part.tree, part.version)).collect();
        Self { vmsd_name: &tree.vmsd, version, fields, subsections }
    }
}

impl<'a> FieldOut<'a> {
    /// An array whose elements are alike is one entry with a length; else each element is one.
    fn push(name: &'a str, value: &'a Value, fields: &mut Vec<Self>) {
        let Value::Array(values) = value else { return fields.push(Self::one(name, value)) };
        let count = values.len();
        let same = values.first().is_none_or(|first| values.iter().all(|value| alike(first, value)));
        for (index, value) in values.iter().enumerate().take(if same { 1 } else { count }) {
            let array_len = (same && count > 1).then_some(count);
            // The last element has no index: so it is in QEMU.
            let index = (!same && index + 1 < count).then_some(index);
            fields.push(Self { array_len, index, ..Self::one(name, value) });
        }
    }

    fn one(name: &'a str, value: &'a Value) -> Self {
        let field = |kind, size| Self { name, array_len: None, index: None, kind, size, body: None };
        match value {
            Value::Unsigned { width: 1, .. } => field("uint8", Some(1)),
            Value::Unsigned { width: 2, .. } => field("uint16", Some(2)),
            Value::Unsigned { width: 4, .. } => field("uint32", Some(4)),
            Value::Unsigned { .. } => field("uint64", Some(8)),
            Value::Signed { width: 1, .. } => field("int8", Some(1)),
            Value::Signed { width: 2, .. } => field("int16", Some(2)),
            Value::Signed { width: 4, .. } => field("int32", Some(4)),
            Value::Signed { .. } => field("int64", Some(8)),
            Value::Bool(_) => field("bool", Some(1)),
            Value::Bytes(bytes) => field("buffer", Some(bytes.len())),
            // The versions of nested structs do not stand in the stream.
            Value::Struct(tree) => Self { body: Some(TreeOut::of(tree, 0)), ..field("struct", None) },
            Value::Array(values) => field("buffer", Some(values.len())),
        }
    }
}

/// Whether one description does for both values.
fn alike(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Unsigned { width, .. }, Value::Unsigned { width: other, .. })
        | (Value::Signed { width, .. }, Value::Signed { width: other, .. }) => width == other,
        (Value::Bool(_), Value::Bool(_)) => true,
        (Value::Bytes(left), Value::Bytes(right)) => left.len() == right.len(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| alike(left, right))
        }
        (Value::Struct(left), Value::Struct(right)) => {
            let fields = left.fields.iter().zip(&right.fields);
            left.vmsd == right.vmsd
                && left.fields.len() == right.fields.len()
                && left.subsections.is_empty()
                && right.subsections.is_empty()
                && fields.into_iter().all(|(left, right)| left.0 == right.0 && alike(&left.1, &right.1))
        }
        _ => false,
    }
}
