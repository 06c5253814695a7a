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
