//! QEMU's device sections: where they stand, and what they say.

use hyperferry_qemu_stream::{DeviceState, FieldError, Section, Tree, Value as QemuValue};
use hyperferry_wire::{Encoder, Endian};

use super::{Element, Fields, Value};

/// An array with more elements shows those that are not zero: a network card has 32768 registers.
const SPARSE: usize = 64;

/// A section, and where it stands in the stream.
pub(crate) struct Placed<'a> {
    /// The section.
    pub(crate) section: &'a Section,
    /// Offset of its first byte.
    pub(crate) offset: u64,
}

/// Sections have no lengths: one begins where the one before it, written again, ends. Gives the end of the last too.
pub(crate) fn place_sections(
    state: &DeviceState,
    first: u64,
) -> std::result::Result<(Vec<Placed<'_>>, u64), FieldError> {
    let mut offset = first;
    let mut placed = Vec::with_capacity(state.sections.len());
    for section in &state.sections {
        placed.push(Placed { section, offset });
        let mut encoder = Encoder::new(Endian::Big);
        section.encode(&mut encoder)?;
        offset += encoder.len() as u64;
    }
    Ok((placed, offset))
}

impl Placed<'_> {
    /// The section as an element below `path`.
    pub(super) fn element(&self, path: &str) -> Element {
        let section = self.section;
        let fields = Fields::new()
            .with("section_id", Value::Dec(section.section_id.into()))
            .with("version", Value::Dec(section.version_id.into()));
        let path = format!("{path}{} {}", section.idstr, section.instance_id);
        Element { path, offset: self.offset, fields: tree(&section.tree, fields) }
    }
}

/// The elements that are not zero, each by its place.
fn sparse(name: &str, values: &[QemuValue], fields: Fields) -> Fields {
    let count = Value::Text(format!("{} values, zero where not shown", values.len()));
    values.iter().enumerate().fold(fields.with(name, count), |fields, (index, found)| match found {
        QemuValue::Unsigned { value: 0, .. } | QemuValue::Signed { value: 0, .. } => fields,
        found => fields.with(format!("{name}[{index}]"), value(found)),
    })
}

fn tree(tree: &Tree, mut fields: Fields) -> Fields {
    for (name, found) in &tree.fields {
        fields = match found {
            QemuValue::Array(values) if values.len() > SPARSE => sparse(name, values, fields),
            found => fields.with(name, value(found)),
        };
    }
    for subsection in &tree.subsections {
        let inner = Fields::new().with("version", Value::Dec(subsection.version.into()));
        fields = fields.with(&subsection.name, Value::Fields(self::tree(&subsection.tree, inner)));
    }
    fields
}

fn value(value: &QemuValue) -> Value {
    match value {
        QemuValue::Unsigned { value, .. } => Value::Hex(*value),
        QemuValue::Signed { value, .. } => Value::Signed(*value),
        QemuValue::Bool(value) => Value::Dec((*value).into()),
        QemuValue::Bytes(bytes) => Value::Bytes(bytes.clone()),
        QemuValue::Array(values) => Value::List(values.iter().map(self::value).collect()),
        QemuValue::Struct(inner) => Value::Fields(tree(inner, Fields::new())),
    }
}
