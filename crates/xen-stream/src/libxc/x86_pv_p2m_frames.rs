//! X86_PV_P2M_FRAMES: frames of a PV domain's P2M table.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::{Body, Field};
use crate::describe::{Fields, Value};

/// X86_PV_P2M_FRAMES: PV domains only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct X86PvP2mFrames {
    /// First PFN that the table covers.
    pub p2m_start_pfn: u32,
    /// Last PFN that the table covers.
    pub p2m_end_pfn: u32,
    /// The table's frames.
    pub p2m_pfn: Vec<u64>,
}

impl Body for X86PvP2mFrames {
    const LENGTH: Length = Length::AtLeast(8);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let (p2m_start_pfn, p2m_end_pfn) = (cursor.u32("p2m_start_pfn")?, cursor.u32("p2m_end_pfn")?);
        let mut p2m_pfn = Vec::new();
        while cursor.remaining() > 0 {
            p2m_pfn.push(cursor.u64("p2m_pfn")?);
        }
        Ok(Self { p2m_start_pfn, p2m_end_pfn, p2m_pfn })
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u32(self.p2m_start_pfn).u32(self.p2m_end_pfn);
        for pfn in &self.p2m_pfn {
            encoder.u64(*pfn);
        }
    }

    fn describe(&self) -> Fields {
        Fields::new()
            .with("p2m_start_pfn", Value::Hex(self.p2m_start_pfn.into()))
            .with("p2m_end_pfn", Value::Hex(self.p2m_end_pfn.into()))
            .with("p2m_pfn", Field::values(&self.p2m_pfn))
    }
}
