//! What a section body says: a tree of named values, and how to read and change it.

use serde::{Deserialize, Serialize};

/// The decoded body of a section, a nested struct or a subsection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Name of the field list that it follows.
    pub vmsd: String,
    /// Fields in wire order, under the names that QEMU gives them (`env.cr[0]` is one name).
    pub fields: Vec<(String, Value)>,
    /// Optional parts that follow the fields.
    pub subsections: Vec<Subsection>,
}

/// An optional part of a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsection {
    /// Its full name, such as `cpu/tsc_khz`.
    pub name: String,
    /// Version of its field list.
    pub version: u32,
    /// Its fields.
    pub tree: Tree,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// An unsigned integer of `width` bytes.
    Unsigned {
        /// 1, 2, 4 or 8.
        width: u8,
        /// The number.
        value: u64,
    },
    /// A signed integer of `width` bytes; timers too, as nanoseconds, -1 when not armed.
    Signed {
        /// 1, 2, 4 or 8.
        width: u8,
        /// The number.
        value: i64,
    },
    /// One byte, 0 or 1.
    Bool(bool),
    /// Buffers, padding and arrays of bytes.
    Bytes(Vec<u8>),
    /// Several values of one kind.
    Array(Vec<Value>),
    /// A nested struct.
    Struct(Tree),
}

/// A field that is not there, or is not what the caller takes it for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: found {found}, wanted {wanted}")]
pub struct FieldError {
    /// Section and field, such as `cpu: env.regs[3]`.
    pub place: String,
    /// What is there.
    pub found: String,
    /// What was asked for.
    pub wanted: String,
}

impl Value {
    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned { width, .. } => format!("uint{}", u32::from(*width) * 8),
            Self::Signed { width, .. } => format!("int{}", u32::from(*width) * 8),
            Self::Bool(_) => "bool".to_owned(),
            Self::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Self::Array(values) => format!("array of {}", values.len()),
            Self::Struct(tree) => format!("struct {}", tree.vmsd),
        }
    }

    /// Puts a number in place, keeping kind and width; says whether it fits.
    fn put(&mut self, number: i128) -> bool {
        if !self.holds(number) {
            return false;
        }
        match (self, u64::try_from(number), i64::try_from(number)) {
            (Self::Unsigned { value, .. }, Ok(number), _) => *value = number,
            (Self::Signed { value, .. }, _, Ok(number)) => *value = number,
            (Self::Bool(value), _, _) => *value = number == 1,
            _ => return false,
        }
        true
    }

    /// Whether the kind and width of this value can hold a number.
    pub(crate) fn holds(&self, number: i128) -> bool {
        match self {
            Self::Unsigned { width, .. } => (0..1_i128 << (u32::from(*width) * 8)).contains(&number),
            Self::Signed { width, .. } => {
                let limit = 1_i128 << (u32::from(*width) * 8 - 1);
                (-limit..limit).contains(&number)
            }
            Self::Bool(_) => number == 0 || number == 1,
            _ => false,
        }
    }

    pub(crate) fn number(&self) -> Option<i128> {
        match self {
            Self::Unsigned { value, .. } => Some((*value).into()),
            Self::Signed { value, .. } => Some((*value).into()),
            Self::Bool(value) => Some((*value).into()),
            _ => None,
        }
    }
}

impl Tree {
    /// An empty tree that follows the named field list.
    pub fn new(vmsd: impl Into<String>) -> Self {
        Self { vmsd: vmsd.into(), ..Self::default() }
    }

    /// The field of that exact name.
    pub fn field<'a>(&'a self, name: &'a str) -> Result<FieldRef<'a>, FieldError> {
        match self.get(name) {
            Some(value) => Ok(FieldRef { tree: self, name, index: None, value: Found::Value(value) }),
            None => Err(self.missing(name)),
        }
    }

    /// The value of that exact name, if there is one.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The value of that exact name, to change it.
    pub fn field_mut(&mut self, name: &str) -> Result<&mut Value, FieldError> {
        let Some(at) = self.fields.iter().position(|(field, _)| field == name) else {
            return Err(self.missing(name));
        };
        match self.fields.get_mut(at) {
            Some((_, value)) => Ok(value),
            None => Err(FieldError { place: name.to_owned(), found: String::new(), wanted: String::new() }),
        }
    }

    /// The nested struct of that name; [`Tree::element_mut`] is for arrays of them.
    pub fn struct_mut(&mut self, name: &str) -> Result<&mut Tree, FieldError> {
        let place = self.place(name);
        match self.field_mut(name)? {
            Value::Struct(tree) => Ok(tree),
            other => Err(FieldError { place, found: other.describe(), wanted: "struct".to_owned() }),
        }
    }

    /// Element `index` of an array, to change it. A lone value counts as an array of one.
    pub fn element_mut(&mut self, name: &str, index: usize) -> Result<&mut Value, FieldError> {
        let place = format!("{}[{index}]", self.place(name));
        let value = self.field_mut(name)?;
        let found = value.describe();
        let element = match value {
            Value::Array(values) => values.get_mut(index),
            Value::Bytes(_) => None,
            lone => (index == 0).then_some(lone),
        };
        element.ok_or(FieldError { place, found, wanted: "an array that reaches there".to_owned() })
    }

    /// Puts a number into a field, which keeps its width; refuses one that does not fit.
    pub fn set_u64(&mut self, name: &str, number: u64) -> Result<(), FieldError> {
        self.set(name, None, number.into())
    }

    /// Puts a signed number into a field, which keeps its width; refuses one that does not fit.
    pub fn set_i64(&mut self, name: &str, number: i64) -> Result<(), FieldError> {
        self.set(name, None, number.into())
    }

    /// Puts a truth value into a field.
    pub fn set_bool(&mut self, name: &str, value: bool) -> Result<(), FieldError> {
        self.set(name, None, value.into())
    }

    /// Puts a number into element `index` of an array or of bytes.
    pub fn set_u64_at(&mut self, name: &str, index: usize, number: u64) -> Result<(), FieldError> {
        self.set(name, Some(index), number.into())
    }

    /// Puts a signed number into element `index` of an array.
    pub fn set_i64_at(&mut self, name: &str, index: usize, number: i64) -> Result<(), FieldError> {
        self.set(name, Some(index), number.into())
    }

    /// Replaces bytes by as many others.
    pub fn set_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), FieldError> {
        let place = self.place(name);
        match self.field_mut(name)? {
            Value::Bytes(old) if old.len() == bytes.len() => {
                old.copy_from_slice(bytes);
                Ok(())
            }
            other => {
                Err(FieldError { place, found: other.describe(), wanted: format!("{} bytes", bytes.len()) })
            }
        }
    }

    /// The subsection of that full name.
    pub fn subsection(&self, name: &str) -> Option<&Subsection> {
        self.subsections.iter().find(|subsection| subsection.name == name)
    }

    /// The subsection of that full name, to change it.
    pub fn subsection_mut(&mut self, name: &str) -> Option<&mut Subsection> {
        self.subsections.iter_mut().find(|subsection| subsection.name == name)
    }

    /// Takes a subsection out.
    pub fn remove_subsection(&mut self, name: &str) -> Option<Subsection> {
        let at = self.subsections.iter().position(|subsection| subsection.name == name)?;
        Some(self.subsections.remove(at))
    }

    /// Adds a subsection, or replaces the one of the same name.
    pub fn put_subsection(&mut self, subsection: Subsection) {
        match self.subsection_mut(&subsection.name) {
            Some(old) => *old = subsection,
            None => self.subsections.push(subsection),
        }
    }

    fn set(&mut self, name: &str, index: Option<usize>, number: i128) -> Result<(), FieldError> {
        let place = match index {
            Some(index) => format!("{}[{index}]", self.place(name)),
            None => self.place(name),
        };
        let value = self.field_mut(name)?;
        let found = value.describe();
        let done = match (value, index) {
            (value, None) => value.put(number),
            (Value::Array(values), Some(index)) => {
                values.get_mut(index).is_some_and(|value| value.put(number))
            }
            (Value::Bytes(bytes), Some(index)) => match (bytes.get_mut(index), u8::try_from(number)) {
                (Some(byte), Ok(number)) => {
                    *byte = number;
                    true
                }
                _ => false,
            },
            (value, Some(0)) => value.put(number),
            _ => false,
        };
        if done {
            return Ok(());
        }
        Err(FieldError { place, found, wanted: format!("a place that holds {number}") })
    }

    fn place(&self, name: &str) -> String {
        format!("{}: {name}", self.vmsd)
    }

    fn missing(&self, name: &str) -> FieldError {
        let wanted = "the field".to_owned();
        FieldError { place: self.place(name), found: "no such field".to_owned(), wanted }
    }
}

/// A field or element found in a tree; remembers its name for messages.
#[derive(Clone, Debug)]
pub struct FieldRef<'a> {
    tree: &'a Tree,
    name: &'a str,
    index: Option<usize>,
    value: Found<'a>,
}

/// Elements of byte arrays have no value of their own.
#[derive(Clone, Copy, Debug)]
enum Found<'a> {
    Value(&'a Value),
    Byte(u8),
}

impl<'a> FieldRef<'a> {
    /// Element `index` of an array or of bytes. A lone value counts as an array of one.
    pub fn at(&self, index: usize) -> Result<FieldRef<'a>, FieldError> {
        let value = match self.value {
            Found::Value(Value::Array(values)) => values.get(index).map(Found::Value),
            Found::Value(Value::Bytes(bytes)) => bytes.get(index).copied().map(Found::Byte),
            lone => (index == 0).then_some(lone),
        };
        let found = FieldRef { index: Some(index), ..self.clone() };
        match value {
            Some(value) => Ok(FieldRef { value, ..found }),
            None => Err(found.wanted("an array that reaches there")),
        }
    }

    /// Number of elements; 1 for a lone value.
    pub fn count(&self) -> usize {
        match self.value {
            Found::Value(Value::Array(values)) => values.len(),
            Found::Value(Value::Bytes(bytes)) => bytes.len(),
            _ => 1,
        }
    }

    /// The number, if it is one that `u64` holds.
    pub fn as_u64(&self) -> Result<u64, FieldError> {
        let number = self.number();
        number.and_then(|number| u64::try_from(number).ok()).ok_or_else(|| self.wanted("an unsigned integer"))
    }

    /// The number, if it is one that `i64` holds.
    pub fn as_i64(&self) -> Result<i64, FieldError> {
        let number = self.number();
        number.and_then(|number| i64::try_from(number).ok()).ok_or_else(|| self.wanted("a signed integer"))
    }

    /// The truth value.
    pub fn as_bool(&self) -> Result<bool, FieldError> {
        match self.number() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(self.wanted("0 or 1")),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> Result<&'a [u8], FieldError> {
        match self.value {
            Found::Value(Value::Bytes(bytes)) => Ok(bytes),
            _ => Err(self.wanted("bytes")),
        }
    }

    /// The nested struct.
    pub fn as_struct(&self) -> Result<&'a Tree, FieldError> {
        match self.value {
            Found::Value(Value::Struct(tree)) => Ok(tree),
            _ => Err(self.wanted("a struct")),
        }
    }

    /// The elements as numbers.
    pub fn as_u64s(&self) -> Result<Vec<u64>, FieldError> {
        (0..self.count()).map(|index| self.at(index)?.as_u64()).collect()
    }

    /// A field of the nested struct.
    pub fn field(&self, name: &'a str) -> Result<FieldRef<'a>, FieldError> {
        self.as_struct()?.field(name)
    }

    fn number(&self) -> Option<i128> {
        match self.value {
            Found::Value(value) => value.number(),
            Found::Byte(byte) => Some(byte.into()),
        }
    }

    fn wanted(&self, wanted: &str) -> FieldError {
        let mut place = self.tree.place(self.name);
        if let Some(index) = self.index {
            place.push_str(&format!("[{index}]"));
        }
        let found = match self.value {
            Found::Value(value) => match value.number() {
                Some(number) => format!("{} {number}", value.describe()),
                None => value.describe(),
            },
            Found::Byte(byte) => format!("byte {byte}"),
        };
        FieldError { place, found, wanted: wanted.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new("cpu");
        let regs = (0..4).map(|value| Value::Unsigned { width: 8, value }).collect();
        tree.fields.push(("env.regs".to_owned(), Value::Array(regs)));
        tree.fields.push(("env.hflags".to_owned(), Value::Unsigned { width: 4, value: 0 }));
        tree.fields.push(("nr".to_owned(), Value::Signed { width: 1, value: -1 }));
        tree.fields.push(("fifo".to_owned(), Value::Bytes(vec![1, 2, 3])));
        tree
    }

    #[test]
    fn reads_by_name_and_index() {
        let tree = tree();
        assert_eq!(tree.field("env.regs").unwrap().at(3).unwrap().as_u64().unwrap(), 3);
        assert_eq!(tree.field("fifo").unwrap().at(2).unwrap().as_u64().unwrap(), 3);
        assert_eq!(tree.field("nr").unwrap().as_i64().unwrap(), -1);
    }

    #[test]
    fn errors_name_section_and_field() {
        let tree = tree();
        let error = tree.field("env.rip").unwrap_err();
        assert_eq!(error.to_string(), "cpu: env.rip: found no such field, wanted the field");
        let error = tree.field("env.regs").unwrap().at(4).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cpu: env.regs[4]: found array of 4, wanted an array that reaches there"
        );
        let error = tree.field("nr").unwrap().as_u64().unwrap_err();
        assert_eq!(error.to_string(), "cpu: nr: found int8 -1, wanted an unsigned integer");
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        let mut tree = tree();
        tree.set_u64("env.hflags", u32::MAX.into()).unwrap();
        assert!(tree.set_u64("env.hflags", 1 << 32).is_err());
        tree.set_i64("nr", -128).unwrap();
        assert!(tree.set_i64("nr", 128).is_err());
        tree.set_u64_at("env.regs", 1, u64::MAX).unwrap();
        assert!(tree.set_u64_at("env.regs", 4, 0).is_err());
        tree.set_u64_at("fifo", 0, 255).unwrap();
        assert!(tree.set_u64_at("fifo", 0, 256).is_err());
        assert!(tree.set_bytes("fifo", &[0; 4]).is_err());
    }
}
