//! CPU_MSR: further model-specific registers of a vCPU.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::{Body, Field, decode_all};
use crate::describe::{Fields, Value};

/// CPU_MSR: left out when all of them are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuMsr {
    /// Padding of Xen's structure, which its sender never sets: whatever stood in that memory.
    ///
    /// Kept so that a real stream stays the same; write 0.
    pub unset: u32,
    /// The registers.
    pub msr: Vec<Msr>,
}

layout! {
    /// One register.
    pub struct Msr: Exact 16 {
        /// Its number.
        index: u32 => _rsvd: 4,
        /// Its value.
        val: u64,
    }
}

impl Body for CpuMsr {
    const LENGTH: Length = Length::AtLeast(8);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let count = cursor.u32("count")?;
        let room = cursor.remaining().saturating_sub(4) / Msr::SIZE;
        if usize::try_from(count) != Ok(room) {
            return Err(cursor.invalid("count", 4, count, format_args!("{room:#x}, which fills the entry")));
        }
        Ok(Self { unset: cursor.u32("unset")?, msr: decode_all(cursor)? })
    }

    fn encode(&self, encoder: &mut Encoder) {
        // The list is at most a record long, and a record's length is a u32.
        encoder.u32(u32::try_from(self.msr.len()).unwrap_or(u32::MAX)).u32(self.unset);
        for msr in &self.msr {
            Body::encode(msr, encoder);
        }
    }

    fn describe(&self) -> Fields {
        Fields::new().with("unset", Value::Hex(self.unset.into())).with("msr", Field::values(&self.msr).row())
    }
}
