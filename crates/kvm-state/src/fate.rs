//! What became of each field: nothing is lost in silence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It arrives with the same meaning and value.
    Carried,
    /// It arrives computed: scaled, or told from other fields.
    Derived,
    /// It arrives with a value that the source did not give.
    Defaulted,
    /// It does not arrive.
    Dropped,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Carried => "carried",
            Self::Derived => "derived",
            Self::Defaulted => "defaulted",
            Self::Dropped => "dropped",
        })
    }
}

/// A field, its fate and the reason. The field's name covers all names below it: `vcpus[0].general` speaks for
/// `vcpus[0].general.rax`, unless a longer name is listed too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldFate {
    /// Path of the field in the source.
    pub field: String,
    /// What became of it.
    pub fate: Fate,
    /// Why, or where it went.
    pub note: String,
}

impl fmt::Display for FieldFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:9} {}", self.fate, self.field)?;
        if self.note.is_empty() { Ok(()) } else { write!(f, ": {}", self.note) }
    }
}

/// Collects fates below a common path.
#[derive(Debug, Default)]
pub(crate) struct Fates {
    list: Vec<FieldFate>,
    prefix: String,
}

impl Fates {
    /// Names that follow lie below this path; it ends with a dot, or is empty.
    pub(crate) fn below(&mut self, prefix: impl Into<String>) {
        self.prefix = prefix.into();
    }

    pub(crate) fn carried(&mut self, fields: &[&str], note: &str) {
        for field in fields {
            self.push(Fate::Carried, field, note);
        }
    }

    pub(crate) fn derived(&mut self, field: &str, note: impl Into<String>) {
        self.push(Fate::Derived, field, note);
    }

    pub(crate) fn defaulted(&mut self, field: &str, note: impl Into<String>) {
        self.push(Fate::Defaulted, field, note);
    }

    pub(crate) fn dropped(&mut self, field: &str, note: impl Into<String>) {
        self.push(Fate::Dropped, field, note);
    }

    pub(crate) fn into_list(self) -> Vec<FieldFate> {
        self.list
    }

    fn push(&mut self, fate: Fate, field: &str, note: impl Into<String>) {
        self.list.push(FieldFate { field: format!("{}{field}", self.prefix), fate, note: note.into() });
    }
}
