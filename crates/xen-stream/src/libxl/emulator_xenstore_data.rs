//! EMULATOR_XENSTORE_DATA: keys of the device model in xenstore.

use hyperferry_wire::{Cursor, Encoder, Error, Result, Source};

use super::EmulatorId;
use crate::Length;
use crate::codec::{Body, Field};
use crate::describe::{Fields, Value};

/// Bytes of keys and values that we accept: real ones are a few lines, and each two bytes may grow to fifty here.
pub const XENSTORE_DATA_LIMIT: usize = 256 << 10;

/// EMULATOR_XENSTORE_DATA: left out when it would be empty, which with a current QEMU it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulatorXenstoreData {
    /// Which program it is.
    pub emulator_id: EmulatorId,
    /// Which of the domain's device models.
    pub index: u32,
    /// The keys, relative to the device model's directory, with their values.
    pub data: Vec<XenstorePair>,
}

/// A key and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XenstorePair {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Body for EmulatorXenstoreData {
    const LENGTH: Length = Length::AtLeast(8);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let emulator_id = EmulatorId::decode(cursor, "emulator_id")?;
        let index = cursor.u32("index")?;
        let (found, limit) = (cursor.remaining() as u64, XENSTORE_DATA_LIMIT as u64);
        Source::<&[u8]>::limit(cursor.path(), cursor.offset(), "xenstore data", found, limit)?;
        let mut data = Vec::new();
        while cursor.remaining() > 0 {
            data.push(XenstorePair { key: string(cursor, "key")?, value: string(cursor, "value")? });
        }
        Ok(Self { emulator_id, index, data })
    }

    fn encode(&self, encoder: &mut Encoder) {
        self.emulator_id.encode(encoder);
        encoder.u32(self.index);
        for pair in &self.data {
            encoder.bytes(pair.key.as_bytes()).u8(0).bytes(pair.value.as_bytes()).u8(0);
        }
    }

    fn describe(&self) -> Fields {
        let mut data = Fields::new();
        for pair in &self.data {
            data = data.with(&pair.key, Value::Text(pair.value.clone()));
        }
        Fields::new()
            .with("emulator_id", self.emulator_id.value())
            .with("index", Value::Dec(self.index.into()))
            .with("data", Value::Fields(data))
    }
}

/// A string with its closing NUL.
fn string(cursor: &mut Cursor<'_>, field: &str) -> Result<String> {
    let (start, rest) = (cursor.offset(), cursor.peek());
    let invalid = |cursor: &Cursor<'_>, found: &[u8], wanted: &str| {
        Error::invalid(cursor.path(), start, field, format_args!("\"{}\"", found.escape_ascii()), wanted)
    };
    let Some(length) = rest.iter().position(|byte| *byte == 0) else {
        let shown = rest.get(..rest.len().min(32)).unwrap_or_default();
        return Err(invalid(cursor, shown, "a string that ends in NUL"));
    };
    let bytes = cursor.bytes(field, length)?;
    cursor.u8(field)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(invalid(cursor, bytes.get(..bytes.len().min(32)).unwrap_or_default(), "ASCII")),
    }
}
