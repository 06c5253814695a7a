//! LAPIC_REGS: the register page of a local APIC.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};

/// LAPIC_REGS: each 32-bit register at its architectural offset.
///
/// TMCCT (0x390) is not maintained by Xen: it is 0, so the phase of a running timer is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapicRegs {
    /// The page's first 1024 bytes.
    pub data: [u8; 1024],
}

impl LapicRegs {
    /// The register at this offset; 0 outside the page.
    pub fn register(&self, offset: usize) -> u32 {
        let bytes = self.data.get(offset..).and_then(|rest| rest.first_chunk::<4>());
        bytes.copied().map_or(0, u32::from_le_bytes)
    }

    /// Sets the register at this offset; nothing outside the page.
    pub fn set_register(&mut self, offset: usize, value: u32) {
        if let Some(bytes) = self.data.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *bytes = value.to_le_bytes();
        }
    }
}

impl Default for LapicRegs {
    fn default() -> Self {
        Self { data: [0; 1024] }
    }
}

impl Body for LapicRegs {
    const LENGTH: Length = Length::Exact(1024);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self { data: cursor.array("data")? })
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.bytes(&self.data);
    }

    /// The registers that are not 0, by offset.
    fn describe(&self) -> Fields {
        let mut fields = Fields::new();
        for offset in (0..self.data.len()).step_by(4) {
            let value = self.register(offset);
            if value != 0 {
                fields = fields.with(register_name(offset), Value::Hex(value.into()));
            }
        }
        fields
    }
}

/// Intel SDM volume 3, table "Local APIC Register Address Map".
fn register_name(offset: usize) -> String {
    let name = match offset {
        0x020 => "ID",
        0x030 => "VERSION",
        0x080 => "TPR",
        0x0a0 => "PPR",
        0x0d0 => "LDR",
        0x0e0 => "DFR",
        0x0f0 => "SVR",
        0x100..0x180 => "ISR",
        0x180..0x200 => "TMR",
        0x200..0x280 => "IRR",
        0x280 => "ESR",
        0x2f0 => "LVT_CMCI",
        0x300 => "ICR",
        0x310 => "ICR2",
        0x320 => "LVT_TIMER",
        0x330 => "LVT_THERMAL",
        0x340 => "LVT_PERFORMANCE",
        0x350 => "LVT_LINT0",
        0x360 => "LVT_LINT1",
        0x370 => "LVT_ERROR",
        0x380 => "TMICT",
        0x390 => "TMCCT",
        0x3e0 => "TDCR",
        _ => "register",
    };
    format!("{name}@{offset:#05x}")
}
