use serde::{Deserialize, Serialize};

use crate::Device;

/// What a QEMU says of the parts above that they have no name for, in QEMU's own words.
///
/// Another QEMU takes it back; every other target accounts for it field by field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remainder {
    /// The machine, by its exact versioned name: `pc-i440fx-10.0`.
    pub machine: String,
    /// The guest ran under KVM, not in QEMU's emulation.
    pub kvm: bool,
    /// The guest came from Xen once: QEMU holds its ACPI tables in a window at 0xfc000000.
    pub from_xen: bool,
    /// What is left of each section, in stream order.
    pub sections: Vec<Device>,
}

impl Remainder {
    /// What is left of a section.
    pub fn section(&self, name: &str, instance: u32) -> Option<&Device> {
        self.sections.iter().find(|section| section.name == name && section.instance == instance)
    }
}
