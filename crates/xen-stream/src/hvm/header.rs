//! HEADER: which Xen saved the context, and the guest's TSC rate.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};

const MAGIC: u32 = 0x5438_1286;
const VERSION: u32 = 1;

/// HEADER: the first entry; its magic and version are checked and never kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Changeset of the Xen that saved; all ones when it was built without one, as all current ones are.
    pub changeset: u64,
    /// `CPUID[1].EAX` of the saving machine; Xen only logs a mismatch.
    pub cpuid: u32,
    /// The guest's TSC rate in kHz; 0 leaves the target's own.
    pub gtsc_khz: u32,
}

impl Header {
    /// Its typecode, which must come first and never again.
    pub(super) const TYPECODE: u16 = 1;
}

impl Body for Header {
    const LENGTH: Length = Length::Exact(24);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let magic = cursor.u32("magic")?;
        if magic != MAGIC {
            return Err(cursor.invalid("magic", 4, magic, format_args!("{MAGIC:#x}")));
        }
        let version = cursor.u32("version")?;
        if version != VERSION {
            return Err(cursor.invalid("version", 4, version, format_args!("{VERSION:#x}")));
        }
        Ok(Self {
            changeset: cursor.u64("changeset")?,
            cpuid: cursor.u32("cpuid")?,
            gtsc_khz: cursor.u32("gtsc_khz")?,
        })
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u32(MAGIC).u32(VERSION).u64(self.changeset).u32(self.cpuid).u32(self.gtsc_khz);
    }

    fn describe(&self) -> Fields {
        Fields::new()
            .with("changeset", Value::Hex(self.changeset))
            .with("cpuid", Value::Hex(self.cpuid.into()))
            .with("gtsc_khz", Value::Dec(self.gtsc_khz.into()))
    }
}
