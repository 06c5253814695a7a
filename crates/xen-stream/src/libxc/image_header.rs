//! The image header, big-endian.

use hyperferry_wire::{Cursor, Encoder, Endian, Error, ErrorKind, Result, StreamPath, Strictness};

use crate::describe::{Fields, Value};

const MARKER: u64 = u64::MAX;
const ID: u32 = 0x5845_4e46;

/// The image header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// 2 from Xen 4.6 to 4.13, 3 since: static data then ends in STATIC_DATA_END.
    pub version: u32,
    /// [`ImageHeader::BIG_ENDIAN`].
    pub options: u16,
}

impl Default for ImageHeader {
    fn default() -> Self {
        Self { version: 3, options: 0 }
    }
}

impl ImageHeader {
    /// [`ImageHeader::options`]: the records are big-endian.
    pub const BIG_ENDIAN: u16 = 1 << 0;

    pub(crate) const LENGTH: usize = 24;

    pub(crate) fn decode(mut cursor: Cursor<'_>) -> Result<Self> {
        let marker = cursor.u64("marker")?;
        if marker != MARKER {
            return Err(cursor.invalid("marker", 8, marker, format_args!("{MARKER:#x}")));
        }
        let id = cursor.u32("id")?;
        if id != ID {
            return Err(cursor.invalid("id", 4, id, format_args!("{ID:#x} (XENF)")));
        }
        let version = cursor.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(cursor.invalid("version", 4, version, "0x2 or 0x3"));
        }
        let options = cursor.u16("options")?;
        if cursor.strictness() == Strictness::Strict && options & !Self::BIG_ENDIAN != 0 {
            return Err(cursor.invalid("options", 2, options, "bit 0 only"));
        }
        cursor.reserved("reserved", 6)?;
        cursor.finish()?;
        Ok(Self { version, options })
    }

    pub(crate) fn encode(&self, encoder: &mut Encoder) {
        let mut header = Encoder::new(Endian::Big);
        header.u64(MARKER).u32(ID).u32(self.version).u16(self.options).zeros(6);
        encoder.bytes(header.as_bytes());
    }

    /// Whether the records can be read; if not, why.
    pub(crate) fn check_readable(&self, start: u64) -> Result<()> {
        if self.options & Self::BIG_ENDIAN == 0 {
            return Ok(());
        }
        let what = "big-endian image".to_owned();
        let why = "written on a big-endian machine; only x86 domains can be moved".to_owned();
        Err(Error::new(path(), start + 16, ErrorKind::Unreadable { what, why }))
    }

    /// What the header holds, field by field.
    pub fn describe(&self) -> Fields {
        Fields::new()
            .with("version", Value::Dec(self.version.into()))
            .with("options", Value::Hex(self.options.into()))
    }
}

pub(crate) fn path() -> StreamPath {
    StreamPath::root().child("libxc image header")
}
