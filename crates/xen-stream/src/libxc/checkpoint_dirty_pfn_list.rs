//! CHECKPOINT_DIRTY_PFN_LIST: dirty pages of a COLO secondary.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::{Body, Field};
use crate::describe::Fields;

/// CHECKPOINT_DIRTY_PFN_LIST: only on the way back from a COLO secondary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointDirtyPfnList {
    /// The pages, in no order.
    pub pfns: Vec<u64>,
}

impl Body for CheckpointDirtyPfnList {
    const LENGTH: Length = Length::AtLeast(0);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let mut pfns = Vec::new();
        while cursor.remaining() > 0 {
            pfns.push(cursor.u64("pfn")?);
        }
        Ok(Self { pfns })
    }

    fn encode(&self, encoder: &mut Encoder) {
        for pfn in &self.pfns {
            encoder.u64(*pfn);
        }
    }

    fn describe(&self) -> Fields {
        Fields::new().with("pfns", Field::values(&self.pfns))
    }
}
