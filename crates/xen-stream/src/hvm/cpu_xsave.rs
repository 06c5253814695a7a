//! CPU_XSAVE: a vCPU's extended state.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};

/// The legacy area and the XSAVE header, which every save area has.
const AREA_MIN: usize = 512 + 64;

/// CPU_XSAVE: written for a vCPU that ever set XCR0.
///
/// The save area is as long as the entry says, in the standard (not compacted) format: the offsets of its
/// components are those of the saving CPU, to be read from leaf 0xd of the CPUID policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuXsave {
    /// Features of the saving host; ignored.
    pub xfeature_mask: u64,
    /// XCR0.
    pub xcr0: u64,
    /// All bits that XCR0 ever had.
    pub xcr0_accum: u64,
    /// The save area.
    pub save_area: Vec<u8>,
}

impl CpuXsave {
    /// XSTATE_BV of the save area's header.
    pub fn xstate_bv(&self) -> u64 {
        self.word(512)
    }

    /// XCOMP_BV of the save area's header; bit 63 would mean the compacted format, which Xen refuses.
    pub fn xcomp_bv(&self) -> u64 {
        self.word(520)
    }

    fn word(&self, offset: usize) -> u64 {
        let bytes = self.save_area.get(offset..).and_then(|rest| rest.first_chunk::<8>());
        bytes.copied().map_or(0, u64::from_le_bytes)
    }
}

impl Body for CpuXsave {
    const LENGTH: Length = Length::AtLeast(24 + AREA_MIN);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self {
            xfeature_mask: cursor.u64("xfeature_mask")?,
            xcr0: cursor.u64("xcr0")?,
            xcr0_accum: cursor.u64("xcr0_accum")?,
            save_area: cursor.rest().to_vec(),
        })
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u64(self.xfeature_mask).u64(self.xcr0).u64(self.xcr0_accum).bytes(&self.save_area);
    }

    fn describe(&self) -> Fields {
        Fields::new()
            .with("xfeature_mask", Value::Hex(self.xfeature_mask))
            .with("xcr0", Value::Hex(self.xcr0))
            .with("xcr0_accum", Value::Hex(self.xcr0_accum))
            .with("xstate_bv", Value::Hex(self.xstate_bv()))
            .with("xcomp_bv", Value::Hex(self.xcomp_bv()))
            .with("save_area", Value::Bytes(self.save_area.clone()))
    }
}
