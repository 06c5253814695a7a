//! SHARED_INFO: a PV domain's shared info page.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};

/// SHARED_INFO: a PV domain's shared info page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedInfo {
    /// Its bytes.
    pub data: Vec<u8>,
}

impl Body for SharedInfo {
    const LENGTH: Length = Length::Exact(4096);

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
