//! The header of libxl's stream, big-endian.

use hyperferry_wire::{Cursor, Encoder, Endian, Error, ErrorKind, Result, StreamPath, Strictness};

use crate::describe::{Fields, Value};

const IDENT: u64 = 0x4c69_6278_6c46_6d74;
const VERSION: u32 = 2;

/// The header of libxl's stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamHeader {
    /// [`StreamHeader::BIG_ENDIAN`], [`StreamHeader::LEGACY`].
    pub options: u32,
}

impl StreamHeader {
    /// [`StreamHeader::options`]: the records are big-endian.
    pub const BIG_ENDIAN: u32 = 1 << 0;
    /// [`StreamHeader::options`]: Xen's converter made this from a legacy stream.
    pub const LEGACY: u32 = 1 << 1;

    pub(crate) const LENGTH: usize = 16;

    pub(crate) fn decode(mut cursor: Cursor<'_>) -> Result<Self> {
        let ident = cursor.u64("ident")?;
        if ident != IDENT {
            return Err(cursor.invalid("ident", 8, ident, format_args!("{IDENT:#x} (LibxlFmt)")));
        }
        let version = cursor.u32("version")?;
        if version != VERSION {
            return Err(cursor.invalid("version", 4, version, format_args!("{VERSION:#x}")));
        }
        let options = cursor.u32("options")?;
        if cursor.strictness() == Strictness::Strict && options & !(Self::BIG_ENDIAN | Self::LEGACY) != 0 {
            return Err(cursor.invalid("options", 4, options, "bits 0 and 1 only"));
        }
        cursor.finish()?;
        Ok(Self { options })
    }

    pub(crate) fn encode(&self, encoder: &mut Encoder) {
        let mut header = Encoder::new(Endian::Big);
        header.u64(IDENT).u32(VERSION).u32(self.options);
        encoder.bytes(header.as_bytes());
    }

    /// Whether the records can be read; if not, why.
    pub(crate) fn check_readable(&self, start: u64) -> Result<()> {
        if self.options & Self::BIG_ENDIAN == 0 {
            return Ok(());
        }
        let what = "big-endian stream".to_owned();
        let why = "written on a big-endian machine; only x86 domains can be moved".to_owned();
        Err(Error::new(path(), start + 12, ErrorKind::Unreadable { what, why }))
    }

    /// What the header holds, field by field.
    pub fn describe(&self) -> Fields {
        Fields::new()
            .with("version", Value::Dec(VERSION.into()))
            .with("options", Value::Hex(self.options.into()))
    }
}

pub(crate) fn path() -> StreamPath {
    StreamPath::root().child("libxl header")
}
