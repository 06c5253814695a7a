//! The sub-header that all records about a device model share.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::codec::Field;
use crate::describe::Value;

/// Which program the device model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmulatorId(pub u32);

impl EmulatorId {
    /// A legacy stream did not say.
    pub const UNKNOWN: Self = Self(0);
    /// Xen's old fork, dropped in 4.21.
    pub const QEMU_TRADITIONAL: Self = Self(1);
    /// QEMU.
    pub const QEMU_UPSTREAM: Self = Self(2);

    /// The name in the specification.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::UNKNOWN => Some("Unknown"),
            Self::QEMU_TRADITIONAL => Some("Qemu Traditional"),
            Self::QEMU_UPSTREAM => Some("Qemu Upstream"),
            _ => None,
        }
    }
}

impl Field for EmulatorId {
    const SIZE: usize = 4;
    const ZERO: Self = Self::UNKNOWN;

    fn decode(cursor: &mut Cursor<'_>, name: &str) -> Result<Self> {
        cursor.u32(name).map(Self)
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u32(self.0);
    }

    fn value(&self) -> Value {
        Value::named(self.0.into(), self.name())
    }
}
