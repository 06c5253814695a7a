//! Reads and writes a body as its schema says: the same walk in both directions.

use hyperferry_wire::{Cursor, Encoder, Error, ErrorKind, Result};

use super::schema::{Condition, Count, Field, Kind, Schema, Shape};
use super::value::{FieldError, Subsection, Tree, Value};
use crate::section::{SUBSECTION, name_from, put_name};

/// Most values decoded from one device state. The largest device known, an e1000, has 33 500; a description
/// that comes with a stream could otherwise ask for far more memory than the stream has bytes.
pub const VALUE_LIMIT: u64 = 1 << 20;

/// Reads a body. `values` counts what was read, up to [`VALUE_LIMIT`].
pub fn decode(schema: &Schema, values: &mut u64, cursor: &mut Cursor<'_>) -> Result<Tree> {
    let mut decoder = Decoder { values: *values };
    let tree = decoder.body(schema, cursor);
    *values = decoder.values;
    tree
}

/// Appends a body. Subsections that the schema does not list are written as `subsection` says.
pub fn encode<'a>(
    schema: &Schema,
    tree: &Tree,
    subsection: &dyn Fn(&str) -> Option<&'a Schema>,
    encoder: &mut Encoder,
) -> std::result::Result<(), FieldError> {
    let mut used = 0;
    for field in schema.fields.iter().filter(|field| is_there(field, tree)) {
        let (at, value) = find(tree, used, &field.name)?;
        used = at + 1;
        let place = || format!("{}: {}", tree.vmsd, field.name);
        match (&field.shape, value) {
            (Shape::One(kind), value) => encode_one(kind, lone(value), &place, subsection, encoder)?,
            (Shape::Array(count, Kind::Unsigned(1)), Value::Bytes(bytes)) => {
                check_count(count, bytes.len(), tree, &place)?;
                encoder.bytes(bytes);
            }
            (Shape::Array(count, kind), value) => {
                let values = several(value);
                check_count(count, values.len(), tree, &place)?;
                for value in values {
                    encode_one(kind, value, &place, subsection, encoder)?;
                }
            }
            (Shape::Each(kinds), value) => {
                let values = several(value);
                check_count(&Count::Fixed(kinds.len()), values.len(), tree, &place)?;
                for (kind, value) in kinds.iter().zip(values) {
                    encode_one(kind, value, &place, subsection, encoder)?;
                }
            }
        }
    }
    refuse_strangers(schema, tree)?;
    for part in &tree.subsections {
        let known = schema.subsection(&part.name).or_else(|| subsection(&part.name));
        let known = known.ok_or_else(|| FieldError {
            place: format!("{}: {}", tree.vmsd, part.name),
            found: "a subsection without a schema".to_owned(),
            wanted: "one that the destination or we know".to_owned(),
        })?;
        encoder.u8(SUBSECTION);
        put_name(encoder, &part.name);
        encoder.u32(part.version);
        encode(known, &part.tree, subsection, encoder)?;
    }
    Ok(())
}

struct Decoder {
    values: u64,
}

impl Decoder {
    fn body(&mut self, schema: &Schema, cursor: &mut Cursor<'_>) -> Result<Tree> {
        let mut tree = Tree::new(schema.vmsd.as_str());
        for field in &schema.fields {
            if is_there(field, &tree) {
                let value = self.field(field, &tree, cursor)?;
                tree.fields.push((field.name.clone(), value));
            }
        }
        while let Some(name) = next_subsection(&schema.vmsd, cursor) {
            let subsection = self.subsection(schema, name, cursor)?;
            tree.subsections.push(subsection);
        }
        Ok(tree)
    }

    fn subsection(&mut self, schema: &Schema, name: &str, cursor: &mut Cursor<'_>) -> Result<Subsection> {
        let Some(known) = schema.subsection(name) else {
            let listed: Vec<_> = schema.subsections.iter().map(|known| known.vmsd.as_str()).collect();
            let wanted = match listed.is_empty() {
                true => "no subsection".to_owned(),
                false => format!("one of {}", listed.join(", ")),
            };
            return Err(Error::invalid(cursor.path(), cursor.offset(), "subsection", name, wanted));
        };
        cursor.u8("subsection")?;
        let length = usize::from(cursor.u8("subsection length")?);
        let name = name_from(cursor, "subsection name", length)?;
        let version = cursor.u32("subsection version")?;
        check_version(known, version, cursor)?;
        Ok(Subsection { name, version, tree: self.body(known, cursor)? })
    }

    fn field(&mut self, field: &Field, tree: &Tree, cursor: &mut Cursor<'_>) -> Result<Value> {
        match &field.shape {
            Shape::One(kind) => self.one(kind, &field.name, cursor),
            Shape::Array(Count::Following, kind) => {
                let mut values = Vec::new();
                while let [0 | 1, _, ..] = cursor.peek() {
                    values.push(self.one(kind, &field.name, cursor)?);
                }
                Ok(Value::Array(values))
            }
            Shape::Array(count, kind) => {
                let count = count_of(count, &field.name, tree, cursor)?;
                if *kind == Kind::Unsigned(1) {
                    return self.one(&Kind::Bytes(count), &field.name, cursor);
                }
                self.several(std::iter::repeat_n(kind, count), &field.name, cursor)
            }
            Shape::Each(kinds) => self.several(kinds.iter(), &field.name, cursor),
        }
    }

    fn several<'a>(
        &mut self,
        kinds: impl Iterator<Item = &'a Kind>,
        name: &str,
        cursor: &mut Cursor<'_>,
    ) -> Result<Value> {
        let mut values = Vec::new();
        for kind in kinds {
            values.push(self.one(kind, name, cursor)?);
        }
        Ok(Value::Array(values))
    }

    fn one(&mut self, kind: &Kind, name: &str, cursor: &mut Cursor<'_>) -> Result<Value> {
        self.values += 1;
        if self.values > VALUE_LIMIT {
            let field = "values in the device state".to_owned();
            let kind = ErrorKind::Limit { field, found: self.values, limit: VALUE_LIMIT };
            return Err(Error::new(cursor.path().clone(), cursor.offset(), kind));
        }
        Ok(match kind {
            Kind::Bool => match cursor.u8(name)? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(cursor.invalid(name, 1, other, "0 or 1")),
            },
            Kind::Unsigned(width) => Value::Unsigned { width: *width, value: number(*width, name, cursor)? },
            Kind::Signed(width) => {
                let shift = 64 - u32::from(*width) * 8;
                let value = (number(*width, name, cursor)? << shift).cast_signed() >> shift;
                Value::Signed { width: *width, value }
            }
            Kind::Bytes(length) => Value::Bytes(cursor.bytes(name, *length)?.to_vec()),
            Kind::Struct(schema) => Value::Struct(self.body(schema, cursor)?),
        })
    }
}

/// Whether the version is the one that this schema describes.
pub(crate) fn check_version(schema: &Schema, version: u32, cursor: &Cursor<'_>) -> Result<()> {
    if version == schema.version {
        return Ok(());
    }
    let at = cursor.offset().saturating_sub(4);
    Err(Error::invalid(cursor.path(), at, format!("version of {}", schema.vmsd), version, schema.version))
}

/// The name of the subsection that comes next, if it belongs to this field list.
///
/// Exactly as `vmstate_subsection_load` looks ahead: what does not fit is left for whoever comes next.
fn next_subsection<'a>(vmsd: &str, cursor: &Cursor<'a>) -> Option<&'a str> {
    let (&kind, rest) = cursor.peek().split_first()?;
    let (&length, rest) = rest.split_first()?;
    if kind != SUBSECTION {
        return None;
    }
    let name = std::str::from_utf8(rest.get(..usize::from(length))?).ok()?;
    name.strip_prefix(vmsd).is_some_and(|rest| !rest.is_empty()).then_some(name)
}

fn number(width: u8, name: &str, cursor: &mut Cursor<'_>) -> Result<u64> {
    match width {
        1 => cursor.u8(name).map(u64::from),
        2 => cursor.u16(name).map(u64::from),
        4 => cursor.u32(name).map(u64::from),
        _ => cursor.u64(name),
    }
}

/// How many elements follow. Nothing is set aside for them: the bytes or [`VALUE_LIMIT`] end what is too long.
fn count_of(count: &Count, name: &str, tree: &Tree, cursor: &Cursor<'_>) -> Result<usize> {
    let found = match count {
        Count::Following => Ok(0),
        Count::Fixed(count) => return Ok(*count),
        Count::Field(field) => tree.field(field).and_then(|field| field.as_u64()),
    };
    let invalid = |found: String| {
        Error::invalid(cursor.path(), cursor.offset(), name, found, "a count from an earlier field")
    };
    let found = found.map_err(|error| invalid(error.to_string()))?;
    usize::try_from(found).map_err(|_| invalid(format!("{found:#x}")))
}

fn is_there(field: &Field, tree: &Tree) -> bool {
    field.when.as_ref().is_none_or(|condition| holds(condition, tree))
}

/// A condition on a field that is itself absent does not hold.
fn holds(condition: &Condition, tree: &Tree) -> bool {
    let Some(Ok(found)) = tree.field(&condition.field).ok().map(|field| field.as_i64()) else { return false };
    condition.is.is_none_or(|wanted| found == wanted) && condition.is_not.is_none_or(|other| found != other)
}

/// The next field of that name from `start` on, or else from the beginning.
fn find<'a>(tree: &'a Tree, start: usize, name: &str) -> std::result::Result<(usize, &'a Value), FieldError> {
    let from = |start: usize| {
        let mut fields = tree.fields.iter().enumerate().skip(start);
        fields.find(|(_, (field, _))| field == name).map(|(at, (_, value))| (at, value))
    };
    from(start).or_else(|| from(0)).ok_or_else(|| FieldError {
        place: format!("{}: {name}", tree.vmsd),
        found: "no such field".to_owned(),
        wanted: "the field, since the schema has it".to_owned(),
    })
}

/// A field that no schema writes would be lost without a word.
fn refuse_strangers(schema: &Schema, tree: &Tree) -> std::result::Result<(), FieldError> {
    let stranger = tree
        .fields
        .iter()
        .find(|(name, _)| !schema.fields.iter().any(|field| field.name == *name && is_there(field, tree)));
    match stranger {
        None => Ok(()),
        Some((name, value)) => Err(FieldError {
            place: format!("{}: {name}", tree.vmsd),
            found: value.describe(),
            wanted: "no such field in this version of the section".to_owned(),
        }),
    }
}

fn check_count(
    count: &Count,
    found: usize,
    tree: &Tree,
    place: &dyn Fn() -> String,
) -> std::result::Result<(), FieldError> {
    let wanted = match count {
        Count::Following => return Ok(()),
        Count::Fixed(count) => *count as u64,
        Count::Field(field) => tree.field(field)?.as_u64()?,
    };
    if found as u64 == wanted {
        return Ok(());
    }
    let found = format!("array of {found}");
    Err(FieldError { place: place(), found, wanted: format!("array of {wanted}") })
}

/// The value itself, or the only element of an array: a vmdesc shows an array of one as a lone value.
fn lone(value: &Value) -> &Value {
    match value {
        Value::Array(values) => match values.as_slice() {
            [value] => value,
            _ => value,
        },
        value => value,
    }
}

/// The elements, or the lone value as one element.
fn several(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        value => std::slice::from_ref(value),
    }
}

fn encode_one<'a>(
    kind: &Kind,
    value: &Value,
    place: &dyn Fn() -> String,
    subsection: &dyn Fn(&str) -> Option<&'a Schema>,
    encoder: &mut Encoder,
) -> std::result::Result<(), FieldError> {
    match (kind, value) {
        (Kind::Bool, Value::Bool(value)) => {
            encoder.u8(u8::from(*value));
        }
        (Kind::Unsigned(wanted), Value::Unsigned { width, value: number })
            if wanted == width && value.holds((*number).into()) =>
        {
            put_number(*width, *number, encoder);
        }
        (Kind::Signed(wanted), Value::Signed { width, value: number })
            if wanted == width && value.holds((*number).into()) =>
        {
            put_number(*width, number.cast_unsigned(), encoder);
        }
        (Kind::Bytes(length), Value::Bytes(bytes)) if *length == bytes.len() => {
            encoder.bytes(bytes);
        }
        (Kind::Struct(schema), Value::Struct(tree)) => {
            return encode(schema, tree, subsection, encoder);
        }
        (kind, value) => {
            let wanted = match kind {
                Kind::Bool => "bool".to_owned(),
                Kind::Unsigned(width) => format!("uint{}", u32::from(*width) * 8),
                Kind::Signed(width) => format!("int{}", u32::from(*width) * 8),
                Kind::Bytes(length) => format!("{length} bytes"),
                Kind::Struct(schema) => format!("struct {}", schema.vmsd),
            };
            let found = match value.number() {
                Some(number) => format!("{} {number}", value.describe()),
                None => value.describe(),
            };
            return Err(FieldError { place: place(), found, wanted });
        }
    }
    Ok(())
}

/// Appends the low `width` bytes of a number.
fn put_number(width: u8, number: u64, encoder: &mut Encoder) {
    let bytes = number.to_be_bytes();
    encoder.bytes(bytes.get(bytes.len() - usize::from(width).min(bytes.len())..).unwrap_or_default());
}
