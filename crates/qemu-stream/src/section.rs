//! Section types and the header that START (0x01) and FULL (0x04) sections share.
//!
//! ```text
//! START, FULL   u8 type, u32 section_id, u8 length + idstr, u32 instance_id, u32 version_id, body
//! PART, END     u8 type, u32 section_id, body
//! FOOTER        u8 0x7e, u32 section_id              after each body, unless the machine switches it off
//! ```
//!
//! Source: `migration/savevm.c` (`save_section_header`, `save_section_footer`), QEMU 7.2 and 10.0. Page:
//! `formats/qemu/stream.md`.

use hyperferry_wire::{Cursor, Encoder, Result};
use serde::{Deserialize, Serialize};

/// What the type byte of a section says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SectionKind {
    /// 0x00: the end of all sections; the vmdesc may follow.
    Eof,
    /// 0x01: the beginning of state that is sent in rounds, such as RAM.
    Start,
    /// 0x02: a round of it.
    Part,
    /// 0x03: its last round, sent while the guest stands still.
    End,
    /// 0x04: a device, whole.
    Full,
    /// 0x06: the JSON description of the stream.
    VmDescription,
    /// 0x07: the machine.
    Configuration,
    /// 0x08: a command.
    Command,
}

/// Type byte of a subsection inside a body.
pub(crate) const SUBSECTION: u8 = 0x05;

/// Type byte of a footer.
pub(crate) const FOOTER: u8 = 0x7e;

/// A footer's type byte and section id.
pub(crate) const FOOTER_LENGTH: usize = 5;

impl SectionKind {
    /// The kind that a type byte means.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::Eof,
            0x01 => Self::Start,
            0x02 => Self::Part,
            0x03 => Self::End,
            0x04 => Self::Full,
            0x06 => Self::VmDescription,
            0x07 => Self::Configuration,
            0x08 => Self::Command,
            _ => return None,
        })
    }

    /// Its type byte.
    pub fn byte(self) -> u8 {
        match self {
            Self::Eof => 0x00,
            Self::Start => 0x01,
            Self::Part => 0x02,
            Self::End => 0x03,
            Self::Full => 0x04,
            Self::VmDescription => 0x06,
            Self::Configuration => 0x07,
            Self::Command => 0x08,
        }
    }
}

/// Names a section: the device and which of its kind it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SectionHeader {
    /// A label that the sender chose, unique in the stream.
    pub section_id: u32,
    /// `<qdev path>/<vmsd name>` of a PCI device, else the vmsd name.
    pub idstr: String,
    /// Which of several: CPU index, APIC id, 0 or 1 for the two 8259 and so on.
    pub instance_id: u32,
    /// Version of the field list.
    pub version_id: u32,
}

impl SectionHeader {
    /// Reads what follows the type byte.
    pub fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let section_id = cursor.u32("section_id")?;
        let length = usize::from(cursor.u8("idstr length")?);
        let idstr = name_from(cursor, "idstr", length)?;
        let instance_id = cursor.u32("instance_id")?;
        let version_id = cursor.u32("version_id")?;
        Ok(Self { section_id, idstr, instance_id, version_id })
    }

    /// Appends type byte and header.
    pub fn encode(&self, kind: SectionKind, encoder: &mut Encoder) {
        encoder.u8(kind.byte()).u32(self.section_id);
        put_name(encoder, &self.idstr);
        encoder.u32(self.instance_id).u32(self.version_id);
    }

    /// The vmsd name: what follows the last `/` of the idstr.
    pub fn vmsd(&self) -> &str {
        vmsd_of(&self.idstr)
    }
}

/// The vmsd name in an idstr such as `0000:00:01.3/piix4_pm`.
pub(crate) fn vmsd_of(idstr: &str) -> &str {
    idstr.rsplit('/').next().unwrap_or(idstr)
}

/// Appends a footer.
pub(crate) fn put_footer(encoder: &mut Encoder, section_id: u32) {
    encoder.u8(FOOTER).u32(section_id);
}

/// Reads a name of `length` bytes, which QEMU writes in printable ASCII.
pub(crate) fn name_from(cursor: &mut Cursor<'_>, field: &str, length: usize) -> Result<String> {
    let bytes = cursor.bytes(field, length)?;
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.is_empty() && name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => {
            Ok(name.to_owned())
        }
        _ => {
            let first = bytes.first().copied().unwrap_or_default();
            Err(cursor.invalid(field, length as u64, first, "a name in printable ASCII"))
        }
    }
}

/// Appends a name with its length byte; what does not fit is cut, and no name of QEMU's is that long.
pub(crate) fn put_name(encoder: &mut Encoder, name: &str) {
    let bytes = name.as_bytes().get(..usize::from(u8::MAX)).unwrap_or(name.as_bytes());
    encoder.u8(u8::try_from(bytes.len()).unwrap_or(u8::MAX)).bytes(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperferry_wire::{Endian, StreamPath};

    #[test]
    fn header_as_captured() {
        let bytes = *b"\x04\0\0\0\x2a\x05timer\0\0\0\0\0\0\0\x02";
        let mut cursor = Cursor::new(&bytes[1..], 1, StreamPath::root(), Endian::Big);
        let header = SectionHeader::decode(&mut cursor).unwrap();
        assert_eq!((header.section_id, header.idstr.as_str(), header.version_id), (0x2a, "timer", 2));
        let mut encoder = Encoder::new(Endian::Big);
        header.encode(SectionKind::Full, &mut encoder);
        assert_eq!(encoder.as_bytes(), bytes);
    }

    #[test]
    fn kinds_are_their_bytes() {
        for byte in 0..=u8::MAX {
            if let Some(kind) = SectionKind::from_byte(byte) {
                assert_eq!(kind.byte(), byte);
            }
        }
    }

    #[test]
    fn the_vmsd_name_follows_the_device_path() {
        assert_eq!(vmsd_of("0000:00:01.3/piix4_pm"), "piix4_pm");
        assert_eq!(vmsd_of("timer"), "timer");
    }
}
