//! What a record holds, for people and for programs: one tree of named values serves both.
//!
//! As text ([`Display`](fmt::Display)) each value is one stable line `name = value`, nested names joined by
//! a dot; as JSON (serde) wire numbers are hexadecimal strings, so that no 64-bit value loses digits.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Up to this many scalars are shown on one line.
const LINE_VALUES: usize = 8;
/// Bytes shown on one line.
const LINE_BYTES: usize = 32;
/// A blob longer than this is shown by its length and checksum: nobody reads it byte by byte.
const BLOB_SHOWN: usize = 4096;

/// One value of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number shown in hexadecimal: addresses, bits, codes.
    Hex(u64),
    /// A number shown in decimal: counts, frequencies, times.
    Dec(u64),
    /// A signed number.
    Signed(i64),
    /// Words.
    Text(String),
    /// Bytes with no meaning here.
    Bytes(Vec<u8>),
    /// Values in wire order.
    List(Vec<Value>),
    /// Named values, each on its line.
    Fields(Fields),
    /// Named values that read best on one line.
    Row(Fields),
}

impl Value {
    /// A wire number with its name where one is known: `0x2 HVM`.
    pub fn named(number: u64, name: Option<&str>) -> Self {
        match name {
            Some(name) => Self::Text(format!("{number:#x} {name}")),
            None => Self::Hex(number),
        }
    }

    /// The same numbers in decimal.
    #[must_use]
    pub fn dec(self) -> Self {
        match self {
            Self::Hex(number) => Self::Dec(number),
            Self::List(values) => Self::List(values.into_iter().map(Self::dec).collect()),
            other => other,
        }
    }

    /// The same fields on one line.
    #[must_use]
    pub fn row(self) -> Self {
        match self {
            Self::Fields(fields) => Self::Row(fields),
            Self::List(values) => Self::List(values.into_iter().map(Self::row).collect()),
            other => other,
        }
    }

    fn is_scalar(&self) -> bool {
        matches!(self, Self::Hex(_) | Self::Dec(_) | Self::Signed(_) | Self::Text(_))
    }

    fn write_lines(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        match self {
            Self::Fields(fields) => fields.write_lines(f, name),
            Self::List(values) if values.len() > LINE_VALUES || !values.iter().all(Self::is_scalar) => {
                for (index, value) in values.iter().enumerate() {
                    value.write_lines(f, &format!("{name}[{index}]"))?;
                }
                Ok(())
            }
            Self::Bytes(bytes) if bytes.len() > LINE_BYTES && bytes.len() <= BLOB_SHOWN => {
                writeln!(f, "{name} = {} bytes, zero where not shown", bytes.len())?;
                for (index, line) in bytes.chunks(LINE_BYTES).enumerate() {
                    if line.iter().any(|byte| *byte != 0) {
                        writeln!(f, "{name}[{:#05x}] = {}", index * LINE_BYTES, hex(line))?;
                    }
                }
                Ok(())
            }
            line => writeln!(f, "{name} = {line}"),
        }
    }
}

/// The value on one line.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hex(number) => write!(f, "{number:#x}"),
            Self::Dec(number) => write!(f, "{number}"),
            Self::Signed(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) if bytes.len() > BLOB_SHOWN => {
                write!(f, "{} bytes, crc32 {:#010x}", bytes.len(), crc32fast::hash(bytes))
            }
            Self::Bytes(bytes) if bytes.is_empty() => f.write_str("0 bytes"),
            Self::Bytes(bytes) => f.write_str(&hex(bytes)),
            Self::List(values) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", values.join(", "))
            }
            Self::Fields(fields) | Self::Row(fields) => {
                let fields: Vec<_> = fields.0.iter().map(|(name, value)| format!("{name} {value}")).collect();
                f.write_str(&fields.join(", "))
            }
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Dec(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::List(values) => values.serialize(serializer),
            Self::Fields(fields) | Self::Row(fields) => fields.serialize(serializer),
            Self::Hex(_) | Self::Text(_) | Self::Bytes(_) => serializer.collect_str(self),
        }
    }
}

/// Named values in wire order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, Value)>);

impl Fields {
    /// No values yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// These values and one more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: Value) -> Self {
        self.0.push((name.into(), value));
        self
    }

    /// The values, in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    fn write_lines(&self, f: &mut fmt::Formatter<'_>, prefix: &str) -> fmt::Result {
        for (name, value) in &self.0 {
            if prefix.is_empty() {
                value.write_lines(f, name)?;
            } else {
                value.write_lines(f, &format!("{prefix}.{name}"))?;
            }
        }
        Ok(())
    }
}

/// One line a value: `name = value`.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_lines(f, "")
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fields {
        let segment = Fields::new().with("selector", Value::Hex(16)).with("base", Value::Hex(0));
        Fields::new()
            .with("khz", Value::Dec(2_596_120))
            .with("cs", Value::Row(segment.clone()))
            .with("idtr", Value::Fields(segment))
            .with("route", Value::List(vec![Value::Hex(5), Value::Hex(10)]))
            .with("offset", Value::Signed(-1))
            .with("fpu", Value::Bytes([[0; 32], [7; 32]].concat()))
    }

    #[test]
    fn one_line_a_value() {
        let wanted = "khz = 2596120\ncs = selector 0x10, base 0x0\nidtr.selector = 0x10\nidtr.base = 0x0\n\
                      route = [0x5, 0xa]\noffset = -1\nfpu = 64 bytes, zero where not shown\n\
                      fpu[0x020] = 0707070707070707070707070707070707070707070707070707070707070707\n";
        assert_eq!(sample().to_string(), wanted);
    }

    #[test]
    fn json_keeps_every_digit() {
        let fields = Fields::new().with("cr3", Value::Hex(u64::MAX)).with("khz", Value::Dec(7));
        let json = serde_json::to_string(&fields).unwrap();
        assert_eq!(json, r#"{"cr3":"0xffffffffffffffff","khz":7}"#);
    }

    #[test]
    fn a_long_blob_is_a_length_and_a_checksum() {
        let blob = Fields::new().with("blob", Value::Bytes(vec![0; 5000]));
        assert_eq!(blob.to_string(), "blob = 5000 bytes, crc32 0xd8e50ea8\n");
    }
}
