//! X86_MSR_POLICY: read-only MSRs as the domain may see them.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::{Body, Field, decode_all};
use crate::describe::Fields;

/// X86_MSR_POLICY.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct X86MsrPolicy {
    /// The MSRs, in wire order.
    pub msrs: Vec<MsrEntry>,
}

layout! {
    /// One MSR: `xen_msr_entry_t`.
    pub struct MsrEntry: Exact 16 {
        /// Its number.
        idx: u32,
        /// None defined: 0.
        flags: u32,
        /// Its value.
        val: u64,
    }
}

impl X86MsrPolicy {
    /// The value of an MSR, where it was sent.
    pub fn get(&self, idx: u32) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.idx == idx).map(|msr| msr.val)
    }
}

impl Body for X86MsrPolicy {
    const LENGTH: Length = Length::AtLeast(MsrEntry::SIZE);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self { msrs: decode_all(cursor)? })
    }

    fn encode(&self, encoder: &mut Encoder) {
        for msr in &self.msrs {
            Body::encode(msr, encoder);
        }
    }

    fn describe(&self) -> Fields {
        Fields::new().with("msrs", Field::values(&self.msrs).row())
    }
}
