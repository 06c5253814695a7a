//! Progress for machines: one JSON document a line.
//!
//! ```text
//! {"schema":"hyperferry-progress","version":1,"guest":…}      first
//! {"phase":…,"elapsed_ms":…,"bytes":…,"memory":{…}|null, …}   as it goes on
//! {"outcome":"done"|"failed","phases":[…],"memory":{…}, …}    last
//! ```

use std::{fs::File, io::Write, path::Path};

use hyperferry_relay::progress::{Summary, Update};
use serde::Serialize;

use super::{Outcome, View};
use crate::exit::{Error, Result};

#[derive(Serialize)]
struct First<'a> {
    schema: &'static str,
    version: u32,
    guest: &'a str,
}

#[derive(Serialize)]
struct Last<'a> {
    outcome: Outcome,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Writes lines of JSON.
pub(super) struct Json<W>(W);

impl Json<File> {
    /// To a file that is made or emptied first.
    pub(super) fn to_file(path: &Path, guest: &str) -> Result<Self> {
        let failed = |source| Error::Output { path: path.display().to_string(), source };
        Ok(Self::new(File::create(path).map_err(failed)?, guest))
    }
}

impl<W: Write + Send> Json<W> {
    pub(super) fn new(out: W, guest: &str) -> Self {
        let mut json = Self(out);
        json.line(&First { schema: "hyperferry-progress", version: 1, guest });
        json
    }

    /// A line in one write: it may share its pipe with others. A reader who is gone is no reason to stop a move.
    fn line(&mut self, document: &impl Serialize) {
        let Ok(mut line) = serde_json::to_vec(document) else { return };
        line.push(b'\n');
        if let Err(error) = self.0.write_all(&line) {
            tracing::debug!(%error, "nobody reads the progress");
        }
    }
}

impl<W: Write + Send> View for Json<W> {
    fn update(&mut self, update: &Update) {
        self.line(update);
    }

    fn end(&mut self, summary: &Summary, outcome: Outcome) {
        self.line(&Last { outcome, summary });
    }
}
