//! The domain header.

use hyperferry_wire::{Cursor, Encoder, Result, StreamPath};

use crate::describe::{Fields, Value};

/// Pages of 4 KiB: the only size that Xen has on x86.
const PAGE_SHIFT: u16 = 12;

/// The domain header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainHeader {
    /// What the domain is.
    pub domain_type: DomainType,
    /// Xen that saved it, major version; 0 when the converter of legacy streams did.
    pub xen_major: u32,
    /// Xen that saved it, minor version.
    pub xen_minor: u32,
}

/// What a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainType(pub u32);

impl DomainType {
    /// Paravirtualised.
    pub const PV: Self = Self(1);
    /// Hardware-virtualised; PVH domains too, which only the xl configuration tells apart.
    pub const HVM: Self = Self(2);

    /// The name, where there is one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::PV => Some("x86 PV"),
            Self::HVM => Some("x86 HVM"),
            _ => None,
        }
    }
}

impl DomainHeader {
    pub(crate) const LENGTH: usize = 16;

    pub(crate) fn decode(mut cursor: Cursor<'_>) -> Result<Self> {
        let domain_type = DomainType(cursor.u32("type")?);
        if domain_type.name().is_none() {
            return Err(cursor.invalid("type", 4, domain_type.0, "0x1 (x86 PV) or 0x2 (x86 HVM)"));
        }
        let page_shift = cursor.u16("page_shift")?;
        if page_shift != PAGE_SHIFT {
            return Err(cursor.invalid("page_shift", 2, page_shift, format_args!("{PAGE_SHIFT:#x}")));
        }
        cursor.reserved("reserved", 2)?;
        let header =
            Self { domain_type, xen_major: cursor.u32("xen_major")?, xen_minor: cursor.u32("xen_minor")? };
        cursor.finish()?;
        Ok(header)
    }

    pub(crate) fn encode(&self, encoder: &mut Encoder) {
        encoder.u32(self.domain_type.0).u16(PAGE_SHIFT).zeros(2).u32(self.xen_major).u32(self.xen_minor);
    }

    /// What the header holds, field by field.
    pub fn describe(&self) -> Fields {
        Fields::new()
            .with("type", Value::named(self.domain_type.0.into(), self.domain_type.name()))
            .with("page_shift", Value::Dec(PAGE_SHIFT.into()))
            .with("xen_major", Value::Dec(self.xen_major.into()))
            .with("xen_minor", Value::Dec(self.xen_minor.into()))
    }
}

pub(crate) fn path() -> StreamPath {
    StreamPath::root().child("libxc domain header")
}
