//! What `hyperferry resolve --json` writes, and what another hyperferry reads of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::decide::There;

const SCHEMA: &str = "hyperferry-resolve";
const VERSION: u32 = 1;
/// Another one at each start of each kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Document {
    schema: String,
    version: u32,
    /// The kernel under which the journal was read.
    boot: Option<String>,
    /// The journal's directory.
    journal: PathBuf,
    /// One for each move in the journal, oldest first.
    pub(super) guests: Vec<Move>,
}

/// A guest that came in or left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Move {
    /// Its name.
    pub(super) guest: String,
    /// Its UUID.
    pub(super) uuid: Option<String>,
    /// `in` or `out`.
    pub(super) direction: String,
    /// The last step in the journal.
    pub(super) step: String,
    /// How long ago it began.
    pub(super) seconds_ago: u64,
    /// Where the single copy is that may run: `here`, `source`, `destination`, `nowhere`, `elsewhere`; or `two`,
    /// `unknown`, `under-way`, `superseded`.
    #[serde(rename = "where")]
    pub(super) place: String,
    /// Why, for people; nothing where nobody was asked.
    pub(super) why: Option<String>,
    /// This host; nothing where its QEMU was not asked.
    pub(super) here: Option<Local>,
    /// The other end; nothing where there is nothing to ask.
    pub(super) there: Option<Remote>,
    /// What makes it so: in this order, each only once the one before it has succeeded.
    pub(super) commands: Vec<Command>,
    /// What has to be true for the commands, and nobody could see.
    pub(super) provided: Option<String>,
}

/// The QEMU of this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Local {
    /// Its run state; nothing if it has ended, or does not answer.
    pub(super) state: Option<String>,
    /// Why it does not answer.
    pub(super) error: Option<String>,
    /// Where it listens.
    pub(super) qmp: PathBuf,
}

/// What was asked at the other end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Remote {
    /// The command that reached it.
    pub(super) asked: Option<String>,
    /// How long ago, where it was not asked now: nothing was left to be asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seconds_ago: Option<u64>,
    /// The copy there: `absent`, `incoming`, `aside`, `suspended`, `paused`, `runs`, `ended`, `namesake`, `two`.
    pub(super) copy: Option<String>,
    /// What it has, for people.
    pub(super) seen: Option<String>,
    /// Why it could not be asked.
    pub(super) error: Option<String>,
}

/// One of the commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Command {
    /// For a shell on this host.
    Shell {
        /// The line.
        shell: String,
    },
    /// For a QEMU.
    Qmp {
        /// Where it listens.
        qmp: PathBuf,
        /// What it is told.
        execute: String,
        /// The host that it is on, unless it is this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on: Option<String>,
    },
}

impl Document {
    /// One with these guests, of a journal of this host.
    pub(super) fn new(journal: &Path, guests: Vec<Move>) -> Self {
        let boot = fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned());
        let journal = fs::canonicalize(journal).unwrap_or_else(|_| journal.to_owned());
        Self { schema: SCHEMA.to_owned(), version: VERSION, boot, journal, guests }
    }

    /// Whether both are of one journal: an address may lead back to where we are.
    pub(super) fn is_of_the_same_journal(&self, other: &Self) -> bool {
        (&self.boot, &self.journal) == (&other.boot, &other.journal)
    }

    /// Reads another host's.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let document: Self = serde_json::from_str(text)
            .map_err(|error| format!("its hyperferry answers no {SCHEMA}: {error}"))?;
        let Self { schema, version, .. } = &document;
        if schema != SCHEMA || *version != VERSION {
            return Err(format!(
                "its hyperferry answers {schema:?} version {version}, wanted {SCHEMA} version {VERSION}"
            ));
        }
        Ok(document)
    }
}

impl Move {
    /// The copy of that host, as another one sees it.
    pub(super) fn copy(&self) -> There {
        let Some(here) = &self.here else { return There::Unasked };
        let given = matches!(self.step.as_str(), "go" | "unknown" | "running" | "left");
        match (here.state.as_deref(), self.direction == "in") {
            (None, _) if here.error.is_some() => There::Unasked,
            (Some("running" | "suspended"), _) => There::Runs,
            (Some(_), true) if given => There::Paused,
            (Some(_), true) => There::Incoming,
            (Some(_), false) if given => There::Aside,
            (Some(_), false) => There::Suspended,
            (None, true) if self.step == "running" => There::Ended,
            (None, _) => There::Absent,
        }
    }
}

impl There {
    /// As the document says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unasked => "unknown",
            Self::Absent => "absent",
            Self::Incoming => "incoming",
            Self::Aside => "aside",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::Runs => "runs",
            Self::Ended => "ended",
            Self::Namesake => "namesake",
            Self::Two => "two",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_hosts_word_is_what_it_has() {
        let copy = |direction: &str, step: &str, state: Option<&str>| {
            let here = Local { state: state.map(str::to_owned), error: None, qmp: "/q".into() };
            let told = Move {
                guest: "web".to_owned(),
                uuid: None,
                direction: direction.to_owned(),
                step: step.to_owned(),
                seconds_ago: 1,
                place: "here".to_owned(),
                why: None,
                here: Some(here),
                there: None,
                commands: vec![Command::Shell { shell: "true".to_owned() }],
                provided: None,
            };
            let text = serde_json::to_string(&Document::new("/j".as_ref(), vec![told])).unwrap();
            let read = Document::parse(&text).unwrap();
            assert!(read.is_of_the_same_journal(&Document::new("/j".as_ref(), Vec::new())));
            assert!(!read.is_of_the_same_journal(&Document::new("/k".as_ref(), Vec::new())));
            read.guests[0].copy()
        };
        for (direction, step, state, there) in [
            ("in", "running", Some("running"), There::Runs),
            ("in", "go", Some("paused"), There::Paused),
            ("in", "ready", Some("paused"), There::Incoming),
            ("in", "running", None, There::Ended),
            ("in", "go", None, There::Absent),
            ("in", "failed", None, There::Absent),
            ("out", "go", Some("postmigrate"), There::Aside),
            ("out", "ready", Some("postmigrate"), There::Suspended),
            ("out", "failed", Some("running"), There::Runs),
            ("out", "left", None, There::Absent),
        ] {
            assert_eq!(copy(direction, step, state), there, "{direction} {step} {state:?}");
        }
        assert!(Document::parse("Name ID").unwrap_err().contains("answers no hyperferry-resolve"));
        let newer = r#"{"schema":"hyperferry-resolve","version":2,"boot":null,"journal":"/j","guests":[]}"#;
        assert!(Document::parse(newer).unwrap_err().contains("version 2"));
    }
}
