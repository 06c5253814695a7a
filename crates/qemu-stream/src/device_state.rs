//! Everything from the first device section to the end of the stream, and qemu-xen's EMULATOR_CONTEXT.
//!
//! Sections carry no lengths: where one ends is known only by decoding it. With a vmdesc at hand its field
//! lists decide; where one of ours reads the same bytes under the same names it takes over, since it also
//! knows conditions and optional parts. Without a vmdesc ours decide alone, and a section that we have no
//! schema for is an error that names it.
//!
//! Source: `migration/savevm.c`, `migration/vmstate.c`, QEMU 7.2 and 10.0. Pages: `formats/qemu/sections.md`,
//! `formats/qemu/emulator-context.md`.

use std::sync::Arc;

use hyperferry_wire::{Cursor, Encoder, Endian, Error, ErrorKind, Result, StreamPath};

use crate::header::Header;
use crate::registry::Registry;
use crate::section::{FOOTER, FOOTER_LENGTH, SectionHeader, SectionKind, put_footer};
use crate::vmdesc::VmDesc;
use crate::vmstate::codec;
use crate::vmstate::schema::Schema;
use crate::vmstate::value::{FieldError, Tree, Value};

/// Most device state taken. A pc machine with several NICs has 1 MiB; graphics adapters that save their own
/// memory in a section have tens.
pub const DEVICE_STATE_LIMIT: u64 = 64 << 20;

/// All device sections, decoded.
#[derive(Clone, Debug)]
pub struct DeviceState {
    /// In stream order.
    pub sections: Vec<Section>,
    /// The stream's own description, if it has one.
    pub vmdesc: Option<VmDesc>,
}

/// A device section.
#[derive(Clone, Debug)]
pub struct Section {
    /// FULL, always, in the streams that are read here.
    pub kind: SectionKind,
    /// A label that the sender chose, unique in the stream.
    pub section_id: u32,
    /// `<qdev path>/<vmsd name>` of a PCI device, else the vmsd name.
    pub idstr: String,
    /// Which of several: CPU index, APIC id, 0 or 1 for the two 8259 and so on.
    pub instance_id: u32,
    /// Version of the field list.
    pub version_id: u32,
    /// What it says.
    pub tree: Tree,
    /// Whether a footer follows the body.
    pub footer: bool,
    schema: Arc<Schema>,
}

impl Section {
    /// The field list that it is written with.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(crate) fn shared_schema(&self) -> Arc<Schema> {
        Arc::clone(&self.schema)
    }

    /// The same section with other contents.
    pub(crate) fn with_tree(&self, tree: Tree) -> Self {
        Self {
            kind: self.kind,
            section_id: self.section_id,
            idstr: self.idstr.clone(),
            instance_id: self.instance_id,
            version_id: self.version_id,
            tree,
            footer: self.footer,
            schema: self.shared_schema(),
        }
    }

    /// The vmsd name: what follows the last `/` of the idstr.
    pub fn vmsd(&self) -> &str {
        crate::section::vmsd_of(&self.idstr)
    }

    /// Appends header, body and footer.
    pub fn encode(&self, encoder: &mut Encoder) -> std::result::Result<(), FieldError> {
        let header = SectionHeader {
            section_id: self.section_id,
            idstr: self.idstr.clone(),
            instance_id: self.instance_id,
            version_id: self.version_id,
        };
        header.encode(self.kind, encoder);
        let subsection = |name: &str| Registry::builtin().subsection(name);
        codec::encode(&self.schema, &self.tree, &subsection, encoder)?;
        if self.footer {
            put_footer(encoder, self.section_id);
        }
        Ok(())
    }
}

impl DeviceState {
    /// The section of that name and instance.
    pub fn section(&self, idstr: &str, instance_id: u32) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|section| section.idstr == idstr && section.instance_id == instance_id)
    }

    /// The section of that name and instance, to change it.
    pub fn section_mut(&mut self, idstr: &str, instance_id: u32) -> Option<&mut Section> {
        let mut sections = self.sections.iter_mut();
        sections.find(|section| section.idstr == idstr && section.instance_id == instance_id)
    }

    /// Reads the blob that qemu-xen writes: header, FULL sections without footers, end. `offset` is where it
    /// stands in the whole stream, `path` what holds it.
    pub fn decode_emulator_context(blob: &[u8], offset: u64, path: StreamPath) -> Result<Self> {
        let mut cursor = Cursor::new(blob, offset, path.clone(), Endian::Big);
        Header::decode(&mut cursor)?;
        let at = cursor.offset();
        Self::decode(cursor.rest(), at, &path)
    }

    /// The mirror image of [`DeviceState::decode_emulator_context`].
    pub fn encode_emulator_context(&self) -> std::result::Result<Vec<u8>, FieldError> {
        let mut encoder = Encoder::new(Endian::Big);
        Header.encode(&mut encoder);
        self.encode(&mut encoder)?;
        Ok(encoder.into_bytes())
    }

    /// Reads from the first device section to the end of the stream.
    pub(crate) fn decode(bytes: &[u8], offset: u64, path: &StreamPath) -> Result<Self> {
        let mut reader = Reader { path, vmdesc: None, footers: None, end: bytes.len(), values: 0 };
        if let Some((eof, json)) = VmDesc::locate(bytes) {
            let text = bytes.get(json..).unwrap_or_default();
            reader.vmdesc = Some(VmDesc::parse(text, path, offset + json as u64)?);
            reader.end = eof + 1;
        }
        let bytes = bytes.get(..reader.end).unwrap_or_default();
        let sections = reader.sections(Cursor::new(bytes, offset, path.clone(), Endian::Big))?;
        Ok(Self { sections, vmdesc: reader.vmdesc })
    }

    /// Appends sections, end and description.
    pub fn encode(&self, encoder: &mut Encoder) -> std::result::Result<(), FieldError> {
        for section in &self.sections {
            section.encode(encoder)?;
        }
        encoder.u8(SectionKind::Eof.byte());
        if let Some(vmdesc) = &self.vmdesc {
            vmdesc.encode(encoder);
        }
        Ok(())
    }
}

struct Reader<'a> {
    path: &'a StreamPath,
    vmdesc: Option<VmDesc>,
    /// Whether footers follow the sections: all of them or none, as the first shows.
    footers: Option<bool>,
    end: usize,
    values: u64,
}

impl Reader<'_> {
    fn sections(&mut self, mut cursor: Cursor<'_>) -> Result<Vec<Section>> {
        let mut sections = Vec::new();
        loop {
            let kind = cursor.u8("section type")?;
            match SectionKind::from_byte(kind) {
                Some(SectionKind::Eof) => break,
                Some(SectionKind::Full) => sections.push(self.section(&mut cursor)?),
                Some(other) => {
                    let kind = ErrorKind::OutOfOrder {
                        found: format!("{other:?}"),
                        wanted: "Full or Eof, for device state has begun".to_owned(),
                    };
                    return Err(Error::new(self.path.clone(), cursor.offset() - 1, kind));
                }
                None => return Err(cursor.invalid("section type", 1, kind, "0x04 FULL or 0x00 EOF")),
            }
        }
        cursor.finish()?;
        Ok(sections)
    }

    fn section(&mut self, outer: &mut Cursor<'_>) -> Result<Section> {
        let at = outer.offset();
        let header = SectionHeader::decode(outer)?;
        let path = self.path.child(format_args!("{} {}", header.idstr, header.instance_id));
        let body = Cursor::new(outer.peek(), outer.offset(), path.clone(), Endian::Big);
        let (schema, tree, length) = self.body(&header, &body, at)?;
        outer.bytes("body", length)?;
        let footer = outer.peek().first() == Some(&FOOTER);
        let mut after = Cursor::new(outer.peek(), outer.offset(), path, Endian::Big);
        if *self.footers.get_or_insert(footer) != footer {
            let found = after.u8("footer")?;
            return Err(after.invalid("footer", 1, found, "a footer after each section or after none"));
        }
        if footer {
            after.u8("footer")?;
            let section_id = after.u32("footer section_id")?;
            if section_id != header.section_id {
                return Err(after.invalid("footer section_id", 4, section_id, header.section_id));
            }
            outer.bytes("footer", FOOTER_LENGTH)?;
        }
        let SectionHeader { section_id, idstr, instance_id, version_id } = header;
        let kind = SectionKind::Full;
        Ok(Section { kind, section_id, idstr, instance_id, version_id, tree, footer, schema })
    }

    /// Decodes a body by the best schema for it; gives its length too.
    fn body(
        &mut self,
        header: &SectionHeader,
        body: &Cursor<'_>,
        at: u64,
    ) -> Result<(Arc<Schema>, Tree, usize)> {
        let variants = Registry::builtin().variants(header.vmsd());
        let described =
            self.vmdesc.as_ref().and_then(|vmdesc| vmdesc.schema(&header.idstr, header.instance_id));
        if let Some(schema) = described.map(Arc::clone) {
            let mut cursor = body.clone();
            let tree = codec::decode(&schema, &mut self.values, &mut cursor)?;
            let length = body.remaining() - cursor.remaining();
            for variant in variants {
                let mut cursor = body.clone();
                let ours = codec::decode(variant, &mut self.values, &mut cursor);
                if let Ok(ours) = ours
                    && body.remaining() - cursor.remaining() == length
                    && same_tree(&ours, &tree)
                {
                    return Ok((Arc::clone(variant), ours, length));
                }
            }
            return Ok((schema, tree, length));
        }
        let mut first_error = None;
        let mut last_resort = None;
        for variant in variants {
            match self.try_variant(variant, header, body) {
                Ok((Next::Section, tree, length)) => return Ok((Arc::clone(variant), tree, length)),
                Ok((Next::End, tree, length)) => last_resort = last_resort.or(Some((variant, tree, length))),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        if let Some((variant, tree, length)) = last_resort {
            return Ok((Arc::clone(variant), tree, length));
        }
        Err(first_error.unwrap_or_else(|| {
            let what = format!("section {}", header.idstr);
            let why = "the stream does not describe it and no schema of ours is of that name".to_owned();
            Error::new(self.path.clone(), at, ErrorKind::Unreadable { what, why })
        }))
    }

    fn try_variant(
        &mut self,
        variant: &Schema,
        header: &SectionHeader,
        body: &Cursor<'_>,
    ) -> Result<(Next, Tree, usize)> {
        codec::check_version(variant, header.version_id, body)?;
        let mut cursor = body.clone();
        let tree = codec::decode(variant, &mut self.values, &mut cursor)?;
        let next = next(header, self.footers, &cursor)?;
        Ok((next, tree, body.remaining() - cursor.remaining()))
    }
}

/// What stands where a body was taken to end. With several ways to read a body, one that another section or a
/// footer follows is the better one: a lone zero byte, the end, is easily found in a wrong place.
enum Next {
    Section,
    End,
}

fn next(header: &SectionHeader, footers: Option<bool>, after: &Cursor<'_>) -> Result<Next> {
    let mut next = after.clone();
    let kind = next.u8("section type")?;
    match kind {
        FOOTER if footers != Some(false) && next.u32("footer section_id")? == header.section_id => {
            return Ok(Next::Section);
        }
        0x04 if footers != Some(true) && SectionHeader::decode(&mut next).is_ok() => {
            return Ok(Next::Section);
        }
        0x00 if footers != Some(true) && next.remaining() == 0 => return Ok(Next::End),
        _ => {}
    }
    let wanted = match footers {
        Some(true) => "a footer",
        Some(false) => "a section or the end",
        None => "a footer, a section or the end",
    };
    Err(Error::invalid(after.path(), after.offset(), "after the body", format_args!("{kind:#x}"), wanted))
}

/// Whether two trees of the same bytes tell the same, but for what a vmdesc cannot show: it leaves out empty
/// arrays and shows an array of one as a lone value.
pub(crate) fn same_tree(ours: &Tree, theirs: &Tree) -> bool {
    let shown = |tree: &Tree| -> Vec<usize> {
        let fields = tree.fields.iter().enumerate();
        fields.filter(|(_, (_, value))| !is_empty(value)).map(|(at, _)| at).collect()
    };
    let (left, right) = (shown(ours), shown(theirs));
    left.len() == right.len()
        && left.iter().zip(&right).all(|(left, right)| {
            match (ours.fields.get(*left), theirs.fields.get(*right)) {
                (Some((name, left)), Some((other, right))) => name == other && same_value(left, right),
                _ => false,
            }
        })
        && ours.subsections.len() == theirs.subsections.len()
        && ours.subsections.iter().zip(&theirs.subsections).all(|(left, right)| {
            left.name == right.name && left.version == right.version && same_tree(&left.tree, &right.tree)
        })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        _ => false,
    }
}

fn same_value(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Struct(left), Value::Struct(right)) => same_tree(left, right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same_value(left, right))
        }
        (Value::Array(left), right) if left.len() == 1 => {
            left.first().is_some_and(|left| same_value(left, right))
        }
        (Value::Bytes(left), Value::Unsigned { width: 1, value }) => {
            left.len() == 1 && left.first().is_some_and(|byte| u64::from(*byte) == *value)
        }
        (left, right) => left == right,
    }
}
