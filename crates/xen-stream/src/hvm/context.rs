//! The sequence of entries, from HEADER to END.

use hyperferry_wire::{Cursor, Encoder, Endian, Error, ErrorKind, Result};

use super::registry::{ROWS, Record, name_of};
use super::{End, Header, cpu};
use crate::Length;
use crate::codec::Body;
use crate::describe::{Fields, Value};
use crate::registry::length_of;

/// Entries that we accept in one context.
///
/// Xen gives an HVM domain at most 128 vCPUs and writes at most ten entries for each.
/// Without a bound a few bytes a piece on the wire would grow to a kilobyte a piece here.
pub const ENTRY_LIMIT: usize = 4096;

/// The HVM_CONTEXT record: every entry in wire order, HEADER and END included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The entries.
    pub entries: Vec<Entry>,
}

/// One entry: which device, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which of its kind: the vCPU's id, or 0 and 1 for the two PICs.
    pub instance: u16,
    /// Its state.
    pub record: Record,
    /// Bytes that an older sender left out of the entry; 0 for the full form.
    ///
    /// A short form is written again only while it reads back as the same state.
    pub elided: usize,
}

impl Entry {
    /// An entry in its full form.
    pub fn new(instance: u16, record: Record) -> Self {
        Self { instance, record, elided: 0 }
    }
}

impl Context {
    /// The states of one kind with their instances: `context.all(|record| match record { … })`.
    pub fn all<'a, T: 'a>(
        &'a self,
        select: impl Fn(&'a Record) -> Option<&'a T> + 'a,
    ) -> impl Iterator<Item = (u16, &'a T)> + 'a {
        self.entries.iter().filter_map(move |entry| Some((entry.instance, select(&entry.record)?)))
    }

    /// The HEADER entry.
    pub fn header(&self) -> Option<&Header> {
        match self.entries.first() {
            Some(Entry { record: Record::Header(header), .. }) => Some(header),
            _ => None,
        }
    }
}

impl Body for Context {
    /// HEADER and END with their descriptors.
    const LENGTH: Length = Length::AtLeast(40);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let mut entries = Vec::new();
        loop {
            let entry = decode_entry(cursor, entries.len())?;
            let ended = matches!(entry.record, Record::End(End));
            entries.push(entry);
            if ended {
                return Ok(Self { entries });
            }
        }
    }

    fn encode(&self, encoder: &mut Encoder) {
        for entry in &self.entries {
            let body = encode_body(entry);
            // A body is at most a record long, and a record's length is a u32.
            let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
            encoder.u16(entry.record.code()).u16(entry.instance).u32(length).bytes(&body);
        }
    }

    fn describe(&self) -> Fields {
        let mut fields = Fields::new();
        for entry in &self.entries {
            let mut state = entry.record.describe();
            if entry.elided > 0 {
                state = state.with("elided", Value::Text(format!("{} bytes", entry.elided)));
            }
            let name = format!("{}[{}]", entry.record.name(), entry.instance);
            fields = fields.with(name, Value::Fields(state));
        }
        fields
    }
}

fn decode_entry(cursor: &mut Cursor<'_>, index: usize) -> Result<Entry> {
    let start = cursor.offset();
    if index >= ENTRY_LIMIT {
        let kind = ErrorKind::Limit {
            field: "entries".to_owned(),
            found: index as u64 + 1,
            limit: ENTRY_LIMIT as u64,
        };
        return Err(Error::new(cursor.path().clone(), start, kind));
    }
    let typecode = cursor.u16("typecode")?;
    let instance = cursor.u16("instance")?;
    let length = cursor.u32("length")?;
    if (index == 0) != (typecode == Header::TYPECODE) {
        let kind = ErrorKind::OutOfOrder {
            found: name_of(typecode).into_owned(),
            wanted: if index == 0 { "HEADER" } else { "one HEADER only" }.to_owned(),
        };
        return Err(Error::new(cursor.path().clone(), start, kind));
    }
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    let rule = length_of(ROWS, typecode.into());
    if let Some(rule) = rule.filter(|rule| !rule.allows(size)) {
        let path = cursor.path().child(segment(index, typecode));
        return Err(Error::invalid(&path, start + 4, "length", length, rule));
    }
    let body = cursor.sub(&segment(index, typecode), size)?;
    match rule {
        Some(Length::AtMost(full)) if size < full => {
            let bytes = lengthen(typecode, body.peek(), full);
            let whole = Cursor::new(&bytes, body.offset(), body.path().clone(), Endian::Little)
                .with_strictness(body.strictness());
            let record = Record::decode(typecode, whole)?;
            Ok(Entry { instance, record, elided: full - size })
        }
        _ => Ok(Entry::new(instance, Record::decode(typecode, body)?)),
    }
}

fn segment(index: usize, typecode: u16) -> String {
    format!("hvm[{index}] {}", name_of(typecode))
}

fn encode_body(entry: &Entry) -> Vec<u8> {
    let mut encoder = Encoder::new(Endian::Little);
    entry.record.encode(&mut encoder);
    let full = encoder.into_bytes();
    let typecode = entry.record.code();
    let Some(length) = full.len().checked_sub(entry.elided).filter(|length| *length < full.len()) else {
        return full;
    };
    let short = shorten(typecode, &full, length);
    if lengthen(typecode, &short, full.len()) == full { short } else { full }
}

/// The full form of an entry that an older sender wrote shorter, as Xen's own loader makes it.
fn lengthen(typecode: u16, short: &[u8], full: usize) -> Vec<u8> {
    if typecode == cpu::TYPECODE {
        return cpu::lengthen(short, full);
    }
    let mut bytes = short.to_vec();
    bytes.resize(full, 0);
    bytes
}

fn shorten(typecode: u16, full: &[u8], length: usize) -> Vec<u8> {
    if typecode == cpu::TYPECODE {
        return cpu::shorten(full, length);
    }
    full.iter().copied().take(length).collect()
}

/// The tests that every entry gets by its row.
#[cfg(test)]
mod tests {
    use hyperferry_wire::{StreamPath, Strictness};

    use super::*;

    const HEADER: [u8; 24] = [
        0x86, 0x12, 0x38, 0x54, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x12, 0x0f, 0x80, 0, 0x18, 0x9d, 0x27, 0,
    ];

    fn entry(typecode: u16, instance: u16, body: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(Endian::Little);
        encoder.u16(typecode).u16(instance).u32(u32::try_from(body.len()).unwrap()).bytes(body);
        encoder.into_bytes()
    }

    /// HEADER, this entry as instance 3, END. HEADER itself stands alone.
    fn context(typecode: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = match typecode {
            1 => Vec::new(),
            _ => entry(1, 0, &HEADER),
        };
        bytes.extend(entry(typecode, 3, body));
        bytes.extend(entry(0, 0, &[]));
        bytes
    }

    fn decode(bytes: &[u8], strictness: Strictness) -> Result<Context> {
        let path = StreamPath::root().child("HVM_CONTEXT");
        let mut cursor = Cursor::new(bytes, 0, path, Endian::Little).with_strictness(strictness);
        let context = Context::decode(&mut cursor)?;
        cursor.finish()?;
        Ok(context)
    }

    fn encode(context: &Context) -> Vec<u8> {
        let mut encoder = Encoder::new(Endian::Little);
        context.encode(&mut encoder);
        encoder.into_bytes()
    }

    /// A body of full length whose bytes all differ from their neighbours, reserved ones zeroed by our encoder.
    fn sample(row: &crate::Row) -> Vec<u8> {
        let size = match row.length {
            Length::Exact(size) | Length::AtMost(size) => size,
            Length::AtLeast(size) => size + 32,
        };
        let mut bytes: Vec<u8> = (1..=size).map(|at| u8::try_from(at % 251 + 1).unwrap()).collect();
        match row.name {
            "HEADER" => bytes[..8].copy_from_slice(&HEADER[..8]),
            "CPU_MSR" => bytes[..4].copy_from_slice(&2_u32.to_le_bytes()),
            _ => {}
        }
        let typecode = u16::try_from(row.code).unwrap();
        let read = decode(&context(typecode, &bytes), Strictness::Tolerant).unwrap();
        let written = encode(&read);
        let body =
            read.entries.iter().position(|entry| entry.instance == 3).unwrap() * (8 + HEADER.len()) + 8;
        written[body..body + size].to_vec()
    }

    /// The rows but END, with a sample each.
    fn rows() -> impl Iterator<Item = (u16, &'static crate::Row, Vec<u8>)> {
        let rows = ROWS.iter().filter(|row| row.code != 0);
        rows.map(|row| (u16::try_from(row.code).unwrap(), row, sample(row)))
    }

    #[test]
    fn every_entry_round_trips_in_full() {
        for (typecode, row, body) in rows() {
            let bytes = context(typecode, &body);
            let context = decode(&bytes, Strictness::Strict).unwrap();
            assert!(encode(&context) == bytes, "{}", row.name);
            let zeros = body.iter().filter(|byte| **byte == 0).count();
            assert!(zeros <= body.len() / 2 || row.name == "HPET", "{}: {zeros} zeros", row.name);
        }
    }

    #[test]
    fn every_entry_at_every_other_length() {
        for (typecode, row, body) in rows() {
            for length in 0..body.len() {
                let bytes = context(typecode, &body[..length]);
                let read = decode(&bytes, Strictness::Strict);
                match row.length {
                    Length::Exact(_) => assert!(read.is_err(), "{} of {length} bytes", row.name),
                    Length::AtLeast(least) if length < least => assert!(read.is_err(), "{}", row.name),
                    _ => {}
                }
                if matches!(row.length, Length::AtMost(_)) {
                    assert!(encode(&read.unwrap()) == bytes, "{} of {length} bytes", row.name);
                }
            }
            let mut long = body.clone();
            long.push(0);
            let read = decode(&context(typecode, &long), Strictness::Tolerant);
            assert!(read.is_err() || row.name == "CPU_XSAVE", "{}: one byte more", row.name);
        }
    }

    #[test]
    fn every_entry_cut_short_is_truncated() {
        for (typecode, row, body) in rows() {
            let bytes = context(typecode, &body);
            for length in 0..bytes.len() {
                let error = decode(&bytes[..length], Strictness::Tolerant).unwrap_err();
                assert!(
                    matches!(error.kind(), ErrorKind::Truncated { .. }),
                    "{} at {length}: {error}",
                    row.name
                );
            }
        }
    }

    #[test]
    fn every_entry_describes_each_of_its_fields() {
        for (typecode, row, body) in rows() {
            let context = decode(&context(typecode, &body), Strictness::Tolerant).unwrap();
            let text = context.describe().to_string();
            let own = format!("{}[3].", row.name);
            assert!(text.lines().any(|line| line.starts_with(&own)), "{}: {text}", row.name);
            let json = serde_json::to_value(context.describe()).unwrap();
            assert!(json[format!("{}[3]", row.name)].is_object(), "{}", row.name);
        }
    }

    #[test]
    fn a_short_form_that_would_lose_state_is_written_in_full() {
        let old = context(5, &[7; 24]);
        let mut context = decode(&old, Strictness::Strict).unwrap();
        assert_eq!(context.entries[1].elided, 8);
        assert_eq!(encode(&context), old);
        if let Record::Lapic(lapic) = &mut context.entries[1].record {
            lapic.pending_esr = 1;
        }
        assert_eq!(encode(&context).len(), old.len() + 8);
    }

    #[test]
    fn header_first_and_end_last() {
        let header = entry(1, 0, &HEADER);
        let twice = [&header[..], &header].concat();
        let error = decode(&twice, Strictness::Tolerant).unwrap_err();
        assert_eq!(error.to_string(), "HVM_CONTEXT @0x20: found HEADER, wanted one HEADER only");
        let behind = [&header[..], &entry(0, 0, &[]), &[1]].concat();
        let error = decode(&behind, Strictness::Tolerant).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Trailing { found: 1 }), "{error}");
    }

    #[test]
    fn a_flood_of_small_entries_is_refused() {
        let mut bytes = entry(1, 0, &HEADER);
        for _ in 0..ENTRY_LIMIT {
            bytes.extend(entry(500, 0, &[]));
        }
        let error = decode(&bytes, Strictness::Tolerant).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Limit { found: 4097, limit: 4096, .. }), "{error}");
    }
}
