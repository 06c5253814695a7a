//! What became of every field, and what the user should know: the loss report.
//!
//! A translation has two halves, `Xen -> model` and `model -> QEMU` for example. Each half writes one line for each
//! field it was given; nothing is lost in silence. See `docs/loss-policy.md`.

use std::fmt;

use serde::Serialize;

/// What became of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The value went over as it was, at most packed another way.
    Carried,
    /// The value went into computing something else, or follows from other fields.
    Derived,
    /// The target needs a value that the source does not have; a default was taken.
    Defaulted,
    /// The target has no place for it.
    Dropped,
}

/// One field of one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldFate {
    /// The half of the translation: `Xen -> model`.
    pub stage: &'static str,
    /// The record: `HVM_CONTEXT CPU[0]`.
    pub record: String,
    /// The field.
    pub field: String,
    /// What became of it.
    pub fate: Fate,
    /// Where it went, why it was dropped, or what stands in for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The guest works, and someone may notice.
    Warning,
    /// The guest would misbehave; refused unless allowed by name.
    Refusal,
}

/// Something the user should know before or after a translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name, as `--allow` takes it.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// It is a refusal that the user has allowed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allowed: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Refusal if self.allowed => "allowed",
            Severity::Refusal => "refused",
        };
        write!(f, "{severity} [{}]: {}", self.name, self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n    {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Everything that a translation has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One line for each field of each record, in stream order.
    pub fields: Vec<FieldFate>,
    /// What the user should know.
    pub findings: Vec<Finding>,
    /// Microseconds from the last page of RAM to the last byte of the state: what translation adds to a downtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_us: Option<u64>,
    /// Whether the sender of a live move had paused the guest by the time this was written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

impl Report {
    /// Starts the account of one record.
    pub fn record(&mut self, stage: &'static str, record: impl fmt::Display) -> RecordLedger<'_> {
        RecordLedger { report: self, stage, record: record.to_string() }
    }

    /// Notes a finding that refuses nothing.
    pub fn find(
        &mut self,
        name: &'static str,
        severity: Severity,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let finding = Finding { name, severity, what: what.into(), remedy: remedy.into(), allowed: false };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// How many fields met this fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.fields.iter().filter(|line| line.fate == fate).count()
    }

    /// The refusals that nobody has allowed.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refusal && !finding.allowed)
    }
}

impl fmt::Display for Report {
    /// Findings, then each field that was defaulted or dropped, then the count of all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        for line in self.fields.iter().filter(|line| line.fate >= Fate::Defaulted) {
            let fate = if line.fate == Fate::Dropped { "dropped" } else { "defaulted" };
            writeln!(f, "{fate} {}.{} ({}): {}", line.record, line.field, line.stage, line.note)?;
        }
        write!(
            f,
            "fields: {} carried, {} derived, {} defaulted, {} dropped",
            self.count(Fate::Carried),
            self.count(Fate::Derived),
            self.count(Fate::Defaulted),
            self.count(Fate::Dropped)
        )
    }
}

/// The account of one record.
#[derive(Debug)]
pub struct RecordLedger<'a> {
    report: &'a mut Report,
    stage: &'static str,
    record: String,
}

impl RecordLedger<'_> {
    /// Fields that went over as they were.
    pub fn carried(&mut self, fields: &[&str]) -> &mut Self {
        for field in fields {
            self.line(field, Fate::Carried, "");
        }
        self
    }

    /// A field that went into computing something else.
    pub fn derived(&mut self, field: &str, note: impl Into<String>) -> &mut Self {
        self.line(field, Fate::Derived, note)
    }

    /// A field of the target for which a default was taken.
    pub fn defaulted(&mut self, field: &str, note: impl Into<String>) -> &mut Self {
        self.line(field, Fate::Defaulted, note)
    }

    /// A field for which the target has no place.
    pub fn dropped(&mut self, field: &str, note: impl Into<String>) -> &mut Self {
        self.line(field, Fate::Dropped, note)
    }

    fn line(&mut self, field: &str, fate: Fate, note: impl Into<String>) -> &mut Self {
        self.report.fields.push(FieldFate {
            stage: self.stage,
            record: self.record.clone(),
            field: field.to_owned(),
            fate,
            note: note.into(),
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_spelled_out_and_the_rest_is_counted() {
        let mut report = Report::default();
        report
            .record("Xen -> model", "HVM_CONTEXT CPU[0]")
            .carried(&["rip", "rsp"])
            .dropped("msr_flags", "obsolete since Xen 3.4");
        assert_eq!(
            report.to_string(),
            "dropped HVM_CONTEXT CPU[0].msr_flags (Xen -> model): obsolete since Xen 3.4\n\
             fields: 2 carried, 0 derived, 0 defaulted, 1 dropped"
        );
    }
}
