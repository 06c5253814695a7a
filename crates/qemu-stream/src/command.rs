//! COMMAND (0x08): a message from the source to the destination between sections.
//!
//! Source: `migration/savevm.c` (`qemu_savevm_command_send`), QEMU 7.2 and 10.0. Page: `formats/qemu/stream.md`.

use std::fmt;

use hyperferry_wire::Encoder;
use serde::{Deserialize, Serialize};

/// Number of a command. Unknown numbers are kept and travel on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommandKind(pub u16);

impl CommandKind {
    /// Asks the destination to talk back.
    pub const OPEN_RETURN_PATH: Self = Self(1);
    /// Asks for an answer on the return path.
    pub const PING: Self = Self(2);
    /// Sent by `pc-*-10.0` machines just before the last RAM section.
    pub const SWITCHOVER_START: Self = Self(11);

    /// The name that QEMU's source gives it.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "OPEN_RETURN_PATH",
            2 => "PING",
            3 => "POSTCOPY_ADVISE",
            4 => "POSTCOPY_LISTEN",
            5 => "POSTCOPY_RUN",
            6 => "POSTCOPY_RAM_DISCARD",
            7 => "POSTCOPY_RESUME",
            8 => "PACKAGED",
            9 => "RECV_BITMAP",
            10 => "ENABLE_COLO",
            11 => "SWITCHOVER_START",
            _ => return None,
        })
    }

    /// Whether the command changes what the bytes after it mean: postcopy and COLO.
    pub(crate) fn changes_the_stream(self) -> bool {
        (3..=10).contains(&self.0)
    }
}

impl fmt::Debug for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// One command with its data, which is at most 64 KiB by its length field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// What it asks.
    pub kind: CommandKind,
    /// Its arguments.
    pub data: Vec<u8>,
}

impl Command {
    /// Kind and length, before the data.
    pub(crate) const HEADER: usize = 4;

    /// Appends type byte, header and data.
    pub fn encode(&self, encoder: &mut Encoder) {
        let data = self.data.get(..usize::from(u16::MAX)).unwrap_or(&self.data);
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        encoder.u8(crate::section::SectionKind::Command.byte()).u16(self.kind.0).u16(length).bytes(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperferry_wire::Endian;

    #[test]
    fn switchover_start_as_captured_from_10_0() {
        let mut encoder = Encoder::new(Endian::Big);
        Command { kind: CommandKind::SWITCHOVER_START, data: Vec::new() }.encode(&mut encoder);
        assert_eq!(encoder.as_bytes(), [0x08, 0x00, 0x0b, 0x00, 0x00]);
    }

    #[test]
    fn unknown_kinds_print_as_hex() {
        assert_eq!(format!("{:?} {:?}", CommandKind(2), CommandKind(0x99)), "PING 0x99");
    }
}
