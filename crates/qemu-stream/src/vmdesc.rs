//! VMDESCRIPTION (0x06): the stream's own account of its sections, as JSON, after the last of them.
//!
//! Source: `migration/savevm.c`, `migration/vmstate.c`, QEMU 7.2 and 10.0. Page: `formats/qemu/sections.md`.

use hyperferry_wire::{Encoder, Error, Result, StreamPath};
use serde::Deserialize;

use crate::registry::Registry;
use crate::section::SectionKind;
use crate::vmstate::schema::{Context, Schema, SchemaText};

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
