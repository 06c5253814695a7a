//! The field list of a section, a struct or a subsection, read from JSON of the vmdesc shape.
//!
//! What our own schemas add to the shape, and a stream's vmdesc never has:
//!
//! | key | on | says |
//! |---|---|---|
//! | `"count": "field"` | field | it is an array as long as that earlier field of the same struct says |
//! | `"when": {"field": …, "is": N}` or `"is_not"` | field | it is there only if that earlier field has (not) this value |
//! | `"count": "*"` | field | it is an array as long as elements follow: they begin with a truth value, what may come after them does not |
//! | `"variants": ["name"]` | field | it is there only in these variants of the schema |
//! | `"also": ["name"]` | field | names that other versions of QEMU give it |
//! | `"struct": "name"` | field | the struct is that of another schema |
//! | `"variants": [...]` | schema | programs that differ in this section without saying so in the stream |

use serde::Deserialize;

/// A field list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Name of the field list (vmsd). Subsections are called `<vmsd>/<name>`.
    pub vmsd: String,
    /// Version of the field list.
    pub version: u32,
    /// Fields in wire order.
    pub fields: Vec<Field>,
    /// Optional parts that may follow the fields.
    pub subsections: Vec<Schema>,
}

/// One entry of a field list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// QEMU's name of it.
    pub name: String,
    /// Names that other versions of QEMU give it.
    pub also: Vec<String>,
    /// What it must be there for.
    pub when: Option<Condition>,
    /// How often it occurs, and what it is.
    pub shape: Shape,
}

/// A condition on an earlier field of the same struct.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The earlier field.
    pub field: String,
    /// The value that it must have.
    #[serde(default)]
    pub is: Option<i64>,
    /// The value that it must not have.
    #[serde(default)]
    pub is_not: Option<i64>,
}

/// How often a field occurs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Once.
    One(Kind),
    /// Several times the same.
    Array(Count, Kind),
    /// Several times, and each differs: structs with subsections, as a vmdesc lists them.
    Each(Vec<Kind>),
}

/// The length of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// Always this.
    Fixed(usize),
    /// The value of an earlier field of the same struct.
    Field(String),
    /// As many as follow, for the number is a property of the machine: each begins with a truth value, and
    /// neither a footer nor a section nor a subsection does.
    Following,
}

/// What a field is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An unsigned integer of 1, 2, 4 or 8 bytes.
    Unsigned(u8),
    /// A signed integer of 1, 2, 4 or 8 bytes; timers too.
    Signed(u8),
    /// One byte, 0 or 1.
    Bool,
    /// So many bytes.
    Bytes(usize),
    /// A nested field list.
    Struct(Box<Schema>),
}

/// Why a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema {vmsd}: {fault}")]
pub struct SchemaError {
    /// The field list at fault.
    pub vmsd: String,
    /// What is wrong with it.
    pub fault: String,
}

/// JSON of a field list: a device of a vmdesc, a struct, a subsection, or one of our files.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SchemaText {
    #[serde(default)]
    pub(crate) vmsd_name: Option<String>,
    #[serde(default)]
    version: u32,
    #[serde(default)]
    pub(crate) variants: Vec<String>,
    #[serde(default)]
    fields: Vec<FieldText>,
    #[serde(default)]
    subsections: Vec<SchemaText>,
}

/// JSON of a field.
#[derive(Clone, Debug, Deserialize)]
struct FieldText {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: Option<usize>,
    #[serde(default)]
    array_len: Option<usize>,
    #[serde(default)]
    index: Option<usize>,
    #[serde(default, rename = "struct")]
    body: Option<BodyText>,
    /// A `tmp` field carries its list itself.
    #[serde(default)]
    vmsd_name: Option<String>,
    #[serde(default)]
    version: u32,
    #[serde(default)]
    fields: Vec<FieldText>,
    #[serde(default)]
    count: Option<String>,
    #[serde(default)]
    when: Option<Condition>,
    #[serde(default)]
    variants: Vec<String>,
    #[serde(default)]
    also: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum BodyText {
    Named(String),
    Listed(SchemaText),
}

/// The `count` of an array that says nowhere how long it is.
const FOLLOWING: &str = "*";

impl FieldText {
    fn is_in(&self, variant: &str) -> bool {
        self.variants.is_empty() || self.variants.iter().any(|name| name == variant)
    }
}

/// What a schema's text may refer to, and how far it is trusted.
pub(crate) struct Context<'a> {
    /// The variant to read the text as.
    pub(crate) variant: &'a str,
    /// Finds another schema's text by name.
    pub(crate) named: &'a dyn Fn(&str) -> Option<SchemaText>,
    /// Our name of a field, from vmsd name and QEMU's name.
    pub(crate) canonical: &'a dyn Fn(&str, &str) -> Option<String>,
    /// Whether a type that we do not know is taken as bytes, since the text says how many.
    pub(crate) opaque: bool,
}

impl Schema {
    pub(crate) fn from_text(
        text: &SchemaText,
        fallback: &str,
        context: &Context<'_>,
    ) -> Result<Self, SchemaError> {
        let vmsd = text.vmsd_name.clone().unwrap_or_else(|| fallback.to_owned());
        let subsections = text.subsections.iter();
        Ok(Self {
            version: text.version,
            fields: fields_from(&vmsd, &text.fields, context)?,
            subsections: subsections
                .map(|text| Self::from_text(text, "", context))
                .collect::<Result<_, _>>()?,
            vmsd,
        })
    }

    /// The subsection of that full name.
    pub fn subsection(&self, name: &str) -> Option<&Schema> {
        self.subsections.iter().find(|subsection| subsection.vmsd == name)
    }

    /// All subsections of this schema, of its structs and of subsections themselves.
    pub(crate) fn all_subsections<'a>(&'a self, found: &mut Vec<&'a Schema>) {
        for subsection in &self.subsections {
            found.push(subsection);
            subsection.all_subsections(found);
        }
        for field in &self.fields {
            for kind in field.shape.kinds() {
                if let Kind::Struct(schema) = kind {
                    schema.all_subsections(found);
                }
            }
        }
    }
}

impl Shape {
    fn kinds(&self) -> &[Kind] {
        match self {
            Self::One(kind) | Self::Array(_, kind) => std::slice::from_ref(kind),
            Self::Each(kinds) => kinds,
        }
    }
}

/// A vmdesc lists the elements of an array that differ one by one: `index` 0, 1, … and the last without.
fn fields_from(vmsd: &str, texts: &[FieldText], context: &Context<'_>) -> Result<Vec<Field>, SchemaError> {
    let mut fields: Vec<Field> = Vec::new();
    let mut run_open = false;
    for text in texts.iter().filter(|text| text.is_in(context.variant)) {
        let name = (context.canonical)(vmsd, &text.name).unwrap_or_else(|| text.name.clone());
        let kind = kind_from(vmsd, text, context)?;
        match fields.last_mut() {
            Some(Field { name: last, shape: Shape::Each(kinds), .. }) if run_open && *last == name => {
                kinds.push(kind);
                run_open = text.index.is_some();
                continue;
            }
            _ => run_open = text.index == Some(0),
        }
        let shape = match (&text.count, text.array_len) {
            _ if run_open => Shape::Each(vec![kind]),
            (Some(field), _) if field == FOLLOWING => Shape::Array(Count::Following, kind),
            (Some(field), _) => Shape::Array(Count::Field(field.clone()), kind),
            (None, Some(length)) => Shape::Array(Count::Fixed(length), kind),
            (None, None) => Shape::One(kind),
        };
        fields.push(Field { name, also: text.also.clone(), when: text.when.clone(), shape });
    }
    Ok(fields)
}

fn kind_from(vmsd: &str, text: &FieldText, context: &Context<'_>) -> Result<Kind, SchemaError> {
    let fault =
        |fault: String| SchemaError { vmsd: vmsd.to_owned(), fault: format!("{}: {fault}", text.name) };
    let sized = |width: u8, kind: Kind| match text.size {
        None => Ok(kind),
        Some(size) if size == usize::from(width) => Ok(kind),
        Some(size) => Err(fault(format!("{} of {size} bytes, wanted {width}", text.kind))),
    };
    match text.kind.as_str() {
        "bool" => sized(1, Kind::Bool),
        "uint8" | "uint8 equal" => sized(1, Kind::Unsigned(1)),
        "uint16" | "uint16 equal" => sized(2, Kind::Unsigned(2)),
        "uint32" | "uint32 equal" => sized(4, Kind::Unsigned(4)),
        "uint64" | "uint64 equal" => sized(8, Kind::Unsigned(8)),
        "int8" => sized(1, Kind::Signed(1)),
        "int16" => sized(2, Kind::Signed(2)),
        "int32" | "int32 equal" | "int32 le" => sized(4, Kind::Signed(4)),
        "int64" | "timer" => sized(8, Kind::Signed(8)),
        "struct" => match &text.body {
            Some(BodyText::Listed(body)) => Ok(Kind::Struct(Box::new(Schema::from_text(body, "", context)?))),
            Some(BodyText::Named(name)) => {
                let body = (context.named)(name).ok_or_else(|| fault(format!("no schema {name}")))?;
                Ok(Kind::Struct(Box::new(Schema::from_text(&body, name, context)?)))
            }
            None => Err(fault("a struct without its fields".to_owned())),
        },
        "tmp" if !text.fields.is_empty() => {
            let vmsd = text.vmsd_name.clone().unwrap_or_default();
            let fields = fields_from(&vmsd, &text.fields, context)?;
            let (version, subsections) = (text.version, Vec::new());
            Ok(Kind::Struct(Box::new(Schema { vmsd, version, fields, subsections })))
        }
        "buffer" | "unused_buffer" | "pci config" | "pci irq state" => match text.size {
            Some(size) => Ok(Kind::Bytes(size)),
            None => Err(fault(format!("{} without a size", text.kind))),
        },
        other => match text.size {
            Some(size) if context.opaque => Ok(Kind::Bytes(size)),
            _ => Err(fault(format!("type {other:?} is not known"))),
        },
    }
}
