//! A QEMU section while it is being read: what a component takes is gone from it, and what nobody takes is the
//! [`Remainder`](hyperferry_vm_model::Remainder). So no field is forgotten, whatever a QEMU has to say.

use hyperferry_qemu_stream::{FieldError, Section, Tree, Value};
use hyperferry_vm_model::Device;

use super::devices;
use crate::{Error, Result, report::Report};

/// The half of a translation that reads a QEMU's sections.
pub(crate) const STAGE: &str = "QEMU -> model";

/// A section, or a structure in one, that loses each field that is taken from it.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    tree: Tree,
    taken: Vec<String>,
    derived: Vec<(String, &'static str)>,
}

/// Takes the section apart.
impl Fields {
    pub(crate) fn of(section: &Section) -> Self {
        Self::from_tree(section.tree.clone())
    }

    pub(crate) fn from_tree(tree: Tree) -> Self {
        Self { tree, taken: Vec::new(), derived: Vec::new() }
    }

    fn take(&mut self, name: &str) -> Result<Value> {
        let Some(at) = self.tree.fields.iter().position(|(field, _)| field == name) else {
            let place = format!("{}: {name}", self.tree.vmsd);
            let (found, wanted) = ("no such field".to_owned(), "the field".to_owned());
            return Err(Error::Section(FieldError { place, found, wanted }));
        };
        let (name, value) = self.tree.fields.remove(at);
        self.taken.push(name);
        Ok(value)
    }

    fn wrong(&self, name: &str, found: &Value, wanted: &str) -> Error {
        let place = format!("{}: {name}", self.tree.vmsd);
        Error::Section(FieldError { place, found: found.describe(), wanted: wanted.to_owned() })
    }

    /// A number that stays in the section.
    pub(crate) fn peek(&self, name: &str) -> Result<u64> {
        self.tree.field(name).and_then(|field| field.as_u64()).map_err(Error::Section)
    }

    /// A signed number that stays in the section.
    pub(crate) fn peek_i64(&self, name: &str) -> Result<i64> {
        self.tree.field(name).and_then(|field| field.as_i64()).map_err(Error::Section)
    }

    /// A number of any width that the target has room for.
    pub(crate) fn number<T: TryFrom<u64>>(&mut self, name: &str) -> Result<T> {
        let value = self.peek(name)?;
        let found = self.take(name)?;
        T::try_from(value).map_err(|_| self.wrong(name, &found, "a smaller number"))
    }

    /// A signed number.
    pub(crate) fn signed(&mut self, name: &str) -> Result<i64> {
        let value = self.peek_i64(name)?;
        self.take(name)?;
        Ok(value)
    }

    /// A truth value, whatever its width.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool> {
        Ok(self.number::<u64>(name)? != 0)
    }

    /// The numbers of an array that has this many.
    pub(crate) fn numbers<T: TryFrom<u64>, const N: usize>(&mut self, name: &str) -> Result<[T; N]> {
        let numbers = self.tree.field(name).and_then(|field| field.as_u64s()).map_err(Error::Section)?;
        let found = self.take(name)?;
        let numbers: Vec<T> = numbers.into_iter().filter_map(|number| T::try_from(number).ok()).collect();
        numbers.try_into().map_err(|_| self.wrong(name, &found, "an array of another shape"))
    }

    /// Bytes.
    pub(crate) fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        match self.take(name)? {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(self.wrong(name, &other, "bytes")),
        }
    }

    /// A structure, whole.
    pub(crate) fn structure(&mut self, name: &str) -> Result<Self> {
        match self.take(name)? {
            Value::Struct(tree) => Ok(Self::from_tree(tree)),
            other => Err(self.wrong(name, &other, "a structure")),
        }
    }

    /// Structures in an array, whole. A lone one counts as an array of one.
    pub(crate) fn structures(&mut self, name: &str) -> Result<Vec<Self>> {
        let values = match self.take(name)? {
            Value::Array(values) => values,
            lone => vec![lone],
        };
        let trees = values.into_iter().map(|value| match value {
            Value::Struct(tree) => Ok(Self::from_tree(tree)),
            other => Err(self.wrong(name, &other, "a structure")),
        });
        trees.collect()
    }

    /// Puts back what is left of structures that were taken out.
    pub(crate) fn put_back(&mut self, name: &str, parts: Vec<Self>) {
        if parts.iter().any(|part| !part.tree.fields.is_empty()) {
            let parts = parts.into_iter().map(|part| Value::Struct(part.tree)).collect();
            self.tree.fields.push((name.to_owned(), Value::Array(parts)));
        }
    }

    /// The same of a lone structure.
    pub(crate) fn put_back_one(&mut self, name: &str, part: Self) {
        if !part.tree.fields.is_empty() {
            self.tree.fields.push((name.to_owned(), Value::Struct(part.tree)));
        }
    }

    /// Puts a number back that the model has only in part.
    pub(crate) fn put_back_number(&mut self, name: &str, width: u8, value: u64) {
        self.tree.fields.push((name.to_owned(), Value::Unsigned { width, value }));
    }

    /// An optional part, whole.
    pub(crate) fn part(&mut self, name: &str) -> Option<Self> {
        let part = self.tree.remove_subsection(name)?;
        self.taken.push(part.name);
        Some(Self::from_tree(part.tree))
    }

    /// The number that an optional part of one field holds.
    pub(crate) fn part_number(&mut self, name: &str, field: &str) -> Result<Option<u64>> {
        self.part(name).map(|mut part| part.number(field)).transpose()
    }

    /// A field that follows from others, or was taken before and says no more than the note tells.
    pub(crate) fn derived(&mut self, name: &str, note: &'static str) {
        self.tree.fields.retain(|(field, _)| field != name);
        self.taken.retain(|field| field != name);
        self.derived.push((name.to_owned(), note));
    }

    /// Only these are left; the others are accounted for elsewhere.
    pub(crate) fn keep(mut self, names: &[&str]) -> Self {
        self.tree.fields.retain(|(field, _)| names.contains(&field.as_str()));
        self.tree.subsections.clear();
        self
    }

    /// What is left of a section that is accounted for elsewhere.
    pub(crate) fn finish_silent(self, section: &Section) -> Device {
        devices::qemu::device(section, &self.tree)
    }

    /// Ends the account of the section; what is left of it.
    pub(crate) fn finish(self, section: &Section, report: &mut Report) -> Device {
        let mut ledger = report.record(STAGE, record_of(section));
        for field in &self.taken {
            ledger.carried(&[field]);
        }
        for (field, note) in &self.derived {
            ledger.derived(field, *note);
        }
        let left = self.tree.fields.iter().map(|(name, _)| name);
        for name in left.chain(self.tree.subsections.iter().map(|part| &part.name)) {
            if !self.taken.contains(name) {
                ledger.carried(&[name]);
            }
        }
        devices::qemu::device(section, &self.tree)
    }
}

/// What a report calls a section.
pub(crate) fn record_of(section: &Section) -> String {
    format!("{} {}", section.idstr, section.instance_id)
}
