//! TOOLSTACK: blob of higher layers, deprecated before it was released.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};

/// TOOLSTACK: blob of higher layers, deprecated before it was released.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toolstack {
    /// Its bytes.
    pub data: Vec<u8>,
}

impl Body for Toolstack {
    const LENGTH: Length = Length::AtLeast(0);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self { data: cursor.rest().to_vec() })
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.bytes(&self.data);
    }

    fn describe(&self) -> Fields {
        Fields::new().with("data", Value::Bytes(self.data.clone()))
    }
}
