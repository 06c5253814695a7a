//! X86_PV_VCPU_BASIC, EXTENDED, XSAVE and MSRS: one form, four records.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};

/// State of one vCPU of a PV domain, kept as bytes; Xen 4.6 to 4.8 could write it empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct X86PvVcpu {
    /// The vCPU.
    pub vcpu_id: u32,
    /// Its state, as Xen's domctl gives it.
    pub context: Vec<u8>,
}

impl Body for X86PvVcpu {
    const LENGTH: Length = Length::AtLeast(8);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let vcpu_id = cursor.u32("vcpu_id")?;
        cursor.reserved("reserved", 4)?;
        Ok(Self { vcpu_id, context: cursor.rest().to_vec() })
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u32(self.vcpu_id).zeros(4).bytes(&self.context);
    }

    fn describe(&self) -> Fields {
        Fields::new()
            .with("vcpu_id", Value::Dec(self.vcpu_id.into()))
            .with("context", Value::Bytes(self.context.clone()))
    }
}
