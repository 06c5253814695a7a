//! The account of a translation: for people on standard error, for programs in a file.

use std::path::Path;

use hyperferry_relay::endpoint::open_output;
use hyperferry_translate::{
    Error as TranslateError,
    report::{Fate, Report},
};
use serde::Serialize;

use crate::exit::{Error, Result};

/// The document that `--report` writes.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    outcome: &'static str,
    to: &'a str,
    summary: Summary,
    #[serde(flatten)]
    report: &'a Report,
}

/// How many of each.
#[derive(Serialize)]
pub(crate) struct Summary {
    carried: usize,
    derived: usize,
    defaulted: usize,
    dropped: usize,
    refused: usize,
    allowed: usize,
}

impl Summary {
    /// Counts.
    pub(crate) fn of(report: &Report) -> Self {
        Self {
            carried: report.count(Fate::Carried),
            derived: report.count(Fate::Derived),
            defaulted: report.count(Fate::Defaulted),
            dropped: report.count(Fate::Dropped),
            refused: report.refusals().count(),
            allowed: report.findings.iter().filter(|finding| finding.allowed).count(),
        }
    }
}

/// Where the account goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account<'a> {
    /// The file for programs.
    pub(crate) file: Option<&'a Path>,
    /// What was translated to.
    pub(crate) to: &'a str,
    /// People want all of it.
    pub(crate) verbose: bool,
}

impl Account<'_> {
    /// Tells what became of a translation that came about.
    pub(crate) fn tell(&self, report: &Report) -> Result<()> {
        if self.verbose || self.file.is_some() {
            say!("{report}");
        } else {
            for finding in &report.findings {
                say!("{finding}");
            }
            let Summary { carried, derived, defaulted, dropped, .. } = Summary::of(report);
            say!(
                "fields: {carried} carried, {derived} derived, {defaulted} defaulted, {dropped} dropped (-v lists the \
                 last two)"
            );
        }
        self.write(report, "translated")
    }

    /// Passes a result on; of one that was refused, tells what else was found.
    pub(crate) fn of<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Relay(hyperferry_relay::Error::Stream(error))) = &result
            && let Some(TranslateError::Refused(report)) = error.downcast_ref()
        {
            let refused: Vec<_> = report.refusals().collect();
            for finding in report.findings.iter().filter(|finding| !refused.contains(finding)) {
                say!("{finding}");
            }
            if report.paused {
                say!(
                    "the guest was paused for this and goes on at the source; `hyperferry check` tells more of it beforehand"
                );
            }
            self.write(report, "refused")?;
        }
        result
    }

    fn write(&self, report: &Report, outcome: &'static str) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        let document = Document {
            schema: "hyperferry-report",
            version: 1,
            outcome,
            to: self.to,
            summary: Summary::of(report),
            report,
        };
        let mut output = open_output(file)?;
        serde_json::to_writer_pretty(&mut output, &document)
            .map_err(|error| Error::Output { path: file.display().to_string(), source: error.into() })?;
        Ok(output.commit()?)
    }
}
