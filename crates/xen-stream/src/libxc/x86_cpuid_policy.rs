//! X86_CPUID_POLICY: CPUID as the domain may see it.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::{Body, Field, decode_all};
use crate::describe::Fields;

/// X86_CPUID_POLICY: the policy, not what the guest reads; Xen overlays APIC ids, OSXSAVE and sizes at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct X86CpuidPolicy {
    /// The leaves, in wire order.
    pub leaves: Vec<CpuidLeaf>,
}

layout! {
    /// One leaf: `xen_cpuid_leaf_t`.
    pub struct CpuidLeaf: Exact 24 {
        /// EAX on input.
        leaf: u32,
        /// ECX on input; all ones for a leaf without subleaves.
        subleaf: u32,
        /// EAX.
        a: u32,
        /// EBX.
        b: u32,
        /// ECX.
        c: u32,
        /// EDX.
        d: u32,
    }
}

impl CpuidLeaf {
    /// [`CpuidLeaf::subleaf`] of a leaf that has none.
    pub const NO_SUBLEAF: u32 = u32::MAX;
}

impl X86CpuidPolicy {
    /// A leaf, where it was sent; `subleaf` is [`CpuidLeaf::NO_SUBLEAF`] for a leaf that has none.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidLeaf> {
        self.leaves.iter().find(|found| found.leaf == leaf && found.subleaf == subleaf)
    }
}

impl Body for X86CpuidPolicy {
    const LENGTH: Length = Length::AtLeast(CpuidLeaf::SIZE);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self { leaves: decode_all(cursor)? })
    }

    fn encode(&self, encoder: &mut Encoder) {
        for leaf in &self.leaves {
            Body::encode(leaf, encoder);
        }
    }

    fn describe(&self) -> Fields {
        Fields::new().with("leaves", Field::values(&self.leaves).row())
    }
}
