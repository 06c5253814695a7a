//! The eight bytes that open every stream: magic and version.
//!
//! Source: `migration/savevm.c` (`qemu_savevm_state_header`), QEMU 7.2 and 10.0. Page: `formats/qemu/stream.md`.

use hyperferry_wire::{Cursor, Encoder, Result};
use serde::{Deserialize, Serialize};

/// `QEVM`.
const QEMU_VM_FILE_MAGIC: u32 = 0x5145_564d;

/// The only version in use since QEMU 0.10.
const QEMU_VM_FILE_VERSION: u32 = 3;

/// The header. Its only legal content is fixed, so it has no fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header;

impl Header {
    /// Bytes on the wire.
    pub const LENGTH: usize = 8;

    /// Reads and checks the header.
    pub fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let magic = cursor.u32("magic")?;
        if magic != QEMU_VM_FILE_MAGIC {
            return Err(cursor.invalid("magic", 4, magic, "0x5145564d \"QEVM\""));
        }
        let version = cursor.u32("version")?;
        if version != QEMU_VM_FILE_VERSION {
            return Err(cursor.invalid("version", 4, version, "3"));
        }
        Ok(Self)
    }

    /// Appends the header.
    pub fn encode(self, encoder: &mut Encoder) {
        encoder.u32(QEMU_VM_FILE_MAGIC).u32(QEMU_VM_FILE_VERSION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperferry_wire::{Endian, StreamPath};

    const BYTES: [u8; 8] = [0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3];

    #[test]
    fn is_eight_fixed_bytes() {
        let mut encoder = Encoder::new(Endian::Big);
        Header.encode(&mut encoder);
        assert_eq!(encoder.as_bytes(), BYTES);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for bit in 0..BYTES.len() * 8 {
            let mut bytes = BYTES;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut cursor = Cursor::new(&bytes, 0, StreamPath::root(), Endian::Big);
            assert!(Header::decode(&mut cursor).is_err(), "bit {bit}");
        }
    }
}
