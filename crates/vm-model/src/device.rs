use std::fmt;

use serde::{Deserialize, Serialize};

/// A device that the device model emulates, with its state as that model describes it.
///
/// Both of our hypervisors run QEMU as the device model, so its state moves field by field and name by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Name of the device's state: `serial`, `e1000`, `ide`.
    pub name: String,
    /// Address on the PCI bus, where it is a PCI device.
    pub address: Option<PciAddress>,
    /// Which of several with this name.
    pub instance: u32,
    /// Version of the description of its state.
    pub version: u32,
    /// The state itself.
    pub state: DeviceState,
}

/// Address of a PCI function on bus 0, domain 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PciAddress {
    /// Slot, 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.{:x}", self.slot, self.function)
    }
}

/// A structure of named fields, and the optional parts that follow it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Fields in their order.
    pub fields: Vec<(String, DeviceValue)>,
    /// Optional parts, present only where they differ from the default.
    pub subsections: Vec<DeviceSubsection>,
}

impl DeviceState {
    /// The field of that exact name.
    pub fn field(&self, name: &str) -> Option<&DeviceValue> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The optional part of that full name.
    pub fn subsection(&self, name: &str) -> Option<&DeviceSubsection> {
        self.subsections.iter().find(|subsection| subsection.name == name)
    }
}

impl DeviceValue {
    /// The number, if it is one that `u64` holds.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned { value, .. } => Some(*value),
            Self::Signed { value, .. } => u64::try_from(*value).ok(),
            Self::Bool(value) => Some(u64::from(*value)),
            _ => None,
        }
    }
}

/// An optional part of a device's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceSubsection {
    /// Full name: `serial/thr_ipending`.
    pub name: String,
    /// Version of its description.
    pub version: u32,
    /// Its fields.
    pub state: DeviceState,
}

/// A value in a device's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeviceValue {
    /// An unsigned number.
    Unsigned {
        /// Its size in the device's registers: 1, 2, 4 or 8 bytes.
        width: u8,
        /// The number.
        value: u64,
    },
    /// A signed number.
    Signed {
        /// Its size: 1, 2, 4 or 8 bytes.
        width: u8,
        /// The number.
        value: i64,
    },
    /// A truth value.
    Bool(bool),
    /// Bytes in memory order.
    Bytes(Vec<u8>),
    /// Values of one kind.
    Array(Vec<DeviceValue>),
    /// A structure.
    Struct(DeviceState),
}
