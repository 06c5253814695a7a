//! EMULATOR_CONTEXT: state of the device model.

use hyperferry_wire::{Cursor, Encoder, Result};

use super::EmulatorId;
use crate::Length;
use crate::codec::{Body, Field};
use crate::describe::{Fields, Value};

/// EMULATOR_CONTEXT: the device model's own save state, kept as bytes.
///
/// From QEMU it is a QEMU stream without configuration, RAM, section footers and description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulatorContext {
    /// Which program it is.
    pub emulator_id: EmulatorId,
    /// Which of the domain's device models.
    pub index: u32,
    /// Its state.
    pub blob: Vec<u8>,
}

impl Body for EmulatorContext {
    const LENGTH: Length = Length::AtLeast(8);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self {
            emulator_id: EmulatorId::decode(cursor, "emulator_id")?,
            index: cursor.u32("index")?,
            blob: cursor.rest().to_vec(),
        })
    }

    fn encode(&self, encoder: &mut Encoder) {
        self.emulator_id.encode(encoder);
        encoder.u32(self.index).bytes(&self.blob);
    }

    fn describe(&self) -> Fields {
        Fields::new()
            .with("emulator_id", self.emulator_id.value())
            .with("index", Value::Dec(self.index.into()))
            .with("blob", Value::Bytes(self.blob.clone()))
    }
}
