//! The schemas that ship with us: one file of `formats/qemu/devices/` and one row here each.
//!
//! They read streams that do not describe themselves (qemu-xen's EMULATOR_CONTEXT, `suppress-vmdesc=on`) and
//! know what one stream's description cannot: conditions, counts and optional parts that were not sent.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::vmstate::schema::{Context, Schema, SchemaError, SchemaText};

macro_rules! devices {
    ($($name:literal)*) => {
        /// Vmsd name and JSON text of each schema.
        const DEVICES: &[(&str, &str)] = &[$((
            $name,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../formats/qemu/devices/", $name, ".json")),
        )),*];
    };
}

devices! {
    "I440FX"
    "PCIBUS"
    "PCIDevice"
    "PCIHost"
    "PIIX3"
    "acpi_build"
    "apic"
    "cirrus_vga"
    "cpu"
    "cpu_common"
    "dma"
    "e1000"
    "fdc"
    "fw_cfg"
    "globalstate"
    "hpet"
    "i2c_bus"
    "i8254"
    "i8259"
    "ide"
    "ioapic"
    "ivshmem-plain"
    "kvm-tpr-opt"
    "kvmclock"
    "mc146818rtc"
    "parallel_isa"
    "pckbd"
    "pcspk"
    "piix4_pm"
    "platform"
    "port92"
    "ps2kbd"
    "ps2mouse"
    "rtl8139"
    "serial"
    "slirp"
    "timer"
    "uhci"
    "usb-hub"
    "usb-kbd"
    "usb-ptr"
    "vga"
    "vmmouse"
}

/// All built-in schemas, by vmsd name, each in the variants that it has.
#[derive(Debug)]
pub struct Registry {
    schemas: HashMap<String, Vec<Arc<Schema>>>,
    aliases: HashMap<(String, String), String>,
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    // A file that does not parse leaves no schema; the walk over all rows below fails on it.
    Registry::load().unwrap_or_else(|_| Registry { schemas: HashMap::new(), aliases: HashMap::new() })
});

/// The variant of a schema that has none.
const ONLY: &str = "";

impl Registry {
    /// The built-in schemas.
    pub fn builtin() -> &'static Self {
        &REGISTRY
    }

    /// The variants of the schema of that vmsd name; empty if we have none.
    pub fn variants(&self, vmsd: &str) -> &[Arc<Schema>] {
        self.schemas.get(vmsd).map(Vec::as_slice).unwrap_or_default()
    }

    /// A subsection's schema by its full name, wherever it belongs.
    pub fn subsection(&self, name: &str) -> Option<&Schema> {
        let schemas = self.schemas.values().flatten();
        schemas.into_iter().find_map(|schema| {
            let mut found = Vec::new();
            schema.all_subsections(&mut found);
            found.into_iter().find(|subsection| subsection.vmsd == name)
        })
    }

    /// Our name of a field that another version of QEMU calls `field`.
    pub(crate) fn canonical(&self, vmsd: &str, field: &str) -> Option<String> {
        self.aliases.get(&(vmsd.to_owned(), field.to_owned())).cloned()
    }

    /// Vmsd names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.schemas.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    fn load() -> Result<Self, SchemaError> {
        let mut texts: HashMap<&str, SchemaText> = HashMap::new();
        for (name, text) in DEVICES {
            let parsed = serde_json::from_str(text)
                .map_err(|error| SchemaError { vmsd: (*name).to_owned(), fault: error.to_string() })?;
            texts.insert(name, parsed);
        }
        let mut schemas = HashMap::new();
        let mut aliases = HashMap::new();
        for (name, text) in &texts {
            let only = [ONLY.to_owned()];
            let names = if text.variants.is_empty() { only.as_slice() } else { text.variants.as_slice() };
            let mut variants = Vec::new();
            for variant in names {
                let context = Context {
                    variant,
                    named: &|name| texts.get(name).cloned(),
                    canonical: &|_, _| None,
                    opaque: false,
                };
                variants.push(Arc::new(Schema::from_text(text, name, &context)?));
            }
            for schema in &variants {
                for field in &schema.fields {
                    for also in &field.also {
                        aliases.insert((schema.vmsd.clone(), also.clone()), field.name.clone());
                    }
                }
            }
            schemas.insert((*name).to_owned(), variants);
        }
        Ok(Self { schemas, aliases })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_schema_of_its_name() {
        let registry = Registry::load().unwrap();
        for (name, _) in DEVICES {
            for schema in registry.variants(name) {
                assert_eq!(&schema.vmsd, name);
                assert!(!schema.fields.is_empty(), "{name}");
            }
            assert!(!registry.variants(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn every_file_has_a_row() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../formats/qemu/devices");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stem = name.strip_suffix(".json").unwrap();
            assert!(DEVICES.iter().any(|(row, _)| *row == stem), "{name}");
        }
    }
}
