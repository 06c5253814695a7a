//! What was done about each guest that came in or left, on disk before it cannot be undone.
//!
//! One file a move in the journal's directory: a line of JSON each step, synced before the step is taken. Its monitor
//! socket lies beside it. The process that writes a file holds a lock on it, so a file without a lock is the account
//! of a process that is gone.
//!
//! ```text
//! begin -> loading -> ready -> go -> running            the guest is here
//!    |        |         |       +-> unknown             it was told to run, and did not confirm it
//!    +--------+---------+-------+-> failed              ours is destroyed and never ran; the source goes on
//! ```
//!
//! A copy may run only behind `go`: any QEMU of an abandoned file without that line can be ended.
//!
//! A guest that leaves has a file of the same kind:
//!
//! ```text
//! leave -> sending -> ready -> go -> left              the guest is at the destination
//!    |        |         |       +-> unknown            the destination was told to run it, and did not confirm it
//!    +--------+---------+-------+-> failed             the destination's copy never ran; the guest is here
//! ```
//!
//! Behind the end of either, `settled` may stand once both ends were asked: nothing is left to be asked about.
//!
//! Up to `ready` the end of the process that sends is enough to have it back (`send::guest`). Behind `ready` its QEMU
//! may stand still, and may be resumed as long as there is no `go`.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyperferry_vm_model::Vm;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, home::Home};

/// The longest path of a UNIX socket, on Linux (`sun_path` with its NUL).
const SOCKET_PATH_MAX: usize = 107;

/// What lies beside the journal's file as long as the guest is here: what QEMU said, its HPET, what only Xen knows of it.
const BESIDE: [&str; 3] = ["log", "hpet.json", HOME];

/// Beside the file of a guest that came from Xen: what only Xen knows of it.
const HOME: &str = "home";

/// One step of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A guest announced itself.
    Begin {
        /// Its name.
        guest: String,
        /// Its UUID.
        uuid: Option<String>,
        /// Who sends it, as far as that is known.
        from: Option<String>,
    },
    /// A guest is about to leave.
    Leave {
        /// Its name.
        guest: String,
        /// Its UUID.
        uuid: Option<String>,
        /// The command that reaches the receiver.
        to: Vec<String>,
        /// Where its QEMU listens.
        monitor: PathBuf,
        /// Its QEMU's process id.
        pid: Option<u32>,
    },
    /// Its memory is about to be sent.
    Sending {
        /// It is stopped first, and nobody but us lets it run on.
        still: bool,
    },
    /// A QEMU is about to be started for it.
    Loading,
    /// It is loaded and stopped at the destination, and the sender is about to be told; or we are the sender and were.
    Ready {
        /// The process id of a QEMU here.
        pid: Option<u32>,
    },
    /// The sender has given it away, and it is about to run at the destination.
    Go,
    /// It runs here.
    Running {
        /// Whether it was left paused, as the sender asked.
        paused: bool,
    },
    /// It runs at the destination, by the receiver's own word.
    Left,
    /// The destination's copy is gone and has never run.
    Failed {
        /// Why.
        why: String,
    },
    /// The destination's copy was told to run, and nobody has confirmed it. One of ours was ended then.
    Unknown {
        /// What happened.
        why: String,
    },
    /// Both ends were asked: one copy runs, and the other end has none.
    Settled {
        /// Whether it runs here.
        here: bool,
        /// Who was asked, for people.
        asked: String,
    },
}

/// A line of a journal's file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Milliseconds since 1970.
    unix_ms: u64,
    #[serde(flatten)]
    step: Step,
}

/// A directory with one file a move.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Opens the directory, or makes it for us alone.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|source| file_error(&directory, "making the journal's directory", source))?;
        let directory = fs::canonicalize(&directory)
            .map_err(|source| file_error(&directory, "finding the journal's directory", source))?;
        Ok(Self { directory })
    }

    /// The directory, where there is one: nothing is made.
    pub fn existing(directory: &Path) -> Option<Self> {
        directory.is_dir().then(|| Self { directory: directory.to_owned() })
    }

    /// Starts a file for a move.
    pub fn begin(&self) -> Result<Entry> {
        let name = format!("{}-{}.journal", unix_ms(), process::id());
        let path = self.directory.join(name);
        let monitor = path.with_extension("qmp");
        if monitor.as_os_str().len() > SOCKET_PATH_MAX {
            let why = format!(
                "a UNIX socket's path has at most {SOCKET_PATH_MAX} bytes; choose a shorter directory"
            );
            return Err(file_error(&monitor, "naming QEMU's monitor", io::Error::other(why)));
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| file_error(&path, "making a journal file", source))?;
        let lock = flock(&file, FlockOperation::NonBlockingLockExclusive);
        lock.map_err(|error| file_error(&path, "locking it", error.into()))?;
        // The name must last as long as what will be written under it.
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(|source| file_error(&self.directory, "syncing the journal's directory", source))?;
        Ok(Entry { file, path, monitor, last: None })
    }

    /// What a Xen said of the guest with this UUID when it last came in.
    pub fn home_of(&self, uuid: &str) -> Result<Option<Home>> {
        for path in self.files(HOME)?.iter().rev() {
            // Whose it is stands beside it as well: another guest's may be damaged.
            let account = Account::read(path.with_extension("journal"))?;
            if account.uuid().is_some_and(|found| found.eq_ignore_ascii_case(uuid)) {
                return Home::read(path).map(Some);
            }
        }
        Ok(None)
    }

    /// What Xen said of each guest that came in, the last one first; what cannot be read is left out.
    pub fn homes(&self) -> Vec<Home> {
        let paths = self.files(HOME).unwrap_or_default();
        paths.iter().rev().filter_map(|path| Home::read(path).ok()).collect()
    }

    /// Files of the directory of one kind, by the time in their names.
    fn files(&self, extension: &str) -> Result<Vec<PathBuf>> {
        let failed = |source| file_error(&self.directory, "listing the journal", source);
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension() == Some(OsStr::new(extension)) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// All moves, oldest first.
    pub fn accounts(&self) -> Result<Vec<Account>> {
        let accounts: Result<Vec<_>> = self.files("journal")?.into_iter().map(Account::read).collect();
        Ok(accounts?.into_iter().filter(|account| !account.steps.is_empty()).collect())
    }
}

/// The account of a move that we are making. Dropped without a step, it leaves no file.
#[derive(Debug)]
pub struct Entry {
    file: File,
    path: PathBuf,
    monitor: PathBuf,
    last: Option<Step>,
}

impl Entry {
    /// Writes a step down, on disk when this returns.
    pub fn note(&mut self, step: Step) -> Result<()> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| file_error(&path, "writing the journal", source)
        };
        let line = Line { unix_ms: unix_ms(), step };
        let mut text = serde_json::to_vec(&line).map_err(io::Error::from).map_err(failed(&self.path))?;
        text.push(b'\n');
        self.file.write_all(&text).and_then(|()| self.file.sync_data()).map_err(failed(&self.path))?;
        if matches!(line.step, Step::Failed { .. } | Step::Unknown { .. }) {
            remove(&self.monitor);
        }
        if matches!(line.step, Step::Failed { .. }) {
            BESIDE.iter().for_each(|extension| remove(&self.path.with_extension(extension)));
        }
        self.last = Some(line.step);
        Ok(())
    }

    /// Keeps what only Xen knows of a guest, so that it can go home as it came.
    pub fn keep_home(&self, vm: &Vm) -> Result<()> {
        Home::keep(&self.path.with_extension(HOME), vm)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where QEMU is to listen for whoever manages the guest afterwards.
    pub fn monitor(&self) -> &Path {
        &self.monitor
    }

    /// Where the files of its QEMU lie, up to their extension.
    pub fn files(&self) -> PathBuf {
        self.path.with_extension("")
    }

    /// The last step taken.
    pub fn last(&self) -> Option<&Step> {
        self.last.as_ref()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.last.is_none()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "an empty journal file stays");
        }
    }
}

/// What a file of the journal says.
#[derive(Clone, Debug)]
pub struct Account {
    /// The file.
    pub path: PathBuf,
    /// Its steps, each with the time it was written.
    pub steps: Vec<(SystemTime, Step)>,
    /// Whether the process that writes it is still there.
    pub active: bool,
    /// What was found behind its last step.
    pub settled: Option<Settled>,
}

/// Both ends were asked: one copy ran, and the other end had none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// When.
    pub at: SystemTime,
    /// Whether it ran here.
    pub here: bool,
    /// Who was asked, for people.
    pub asked: String,
}

impl Account {
    fn read(path: PathBuf) -> Result<Self> {
        let failed = |source| file_error(&path, "reading the journal", source);
        let file = File::open(&path).map_err(failed)?;
        // Asked first: what an active process writes meanwhile may be missed, what a dead one wrote may not.
        let active = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        let text = fs::read_to_string(&path).map_err(failed)?;
        let (mut steps, mut settled) = (Vec::new(), None);
        // A last line without its end was not synced, so its step was not taken.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let line: Line = serde_json::from_str(line).map_err(|error| failed(error.into()))?;
            let at = UNIX_EPOCH + Duration::from_millis(line.unix_ms);
            settled = match line.step {
                Step::Settled { here, asked } => Some(Settled { at, here, asked }),
                step => {
                    steps.push((at, step));
                    None
                }
            };
        }
        Ok(Self { path, steps, active, settled })
    }

    /// Where its QEMU listens.
    pub fn monitor(&self) -> PathBuf {
        self.path.with_extension("qmp")
    }

    /// Whether its copy may have run.
    pub fn may_have_run(&self) -> bool {
        let failed = matches!(self.steps.last(), Some((_, Step::Failed { .. })));
        !failed && self.steps.iter().any(|(_, step)| matches!(step, Step::Go))
    }

    /// The guest's UUID.
    pub fn uuid(&self) -> Option<&str> {
        match self.steps.first() {
            Some((_, Step::Begin { uuid, .. } | Step::Leave { uuid, .. })) => uuid.as_deref(),
            _ => None,
        }
    }

    /// Whether it is of a guest that left, and not of one that came in.
    pub fn leaves(&self) -> bool {
        matches!(self.steps.first(), Some((_, Step::Leave { .. })))
    }

    /// Adds a step to an account that nobody writes any more; false if somebody does after all.
    pub fn close(&mut self, step: Step) -> Result<bool> {
        let written = self.append(&step)?;
        if written {
            self.steps.push((SystemTime::now(), step));
            self.settled = None;
        }
        Ok(written)
    }

    /// Adds what was found at both ends.
    pub fn settle(&mut self, here: bool, asked: String) -> Result<()> {
        if self.append(&Step::Settled { here, asked: asked.clone() })? {
            self.settled = Some(Settled { at: SystemTime::now(), here, asked });
        }
        Ok(())
    }

    fn append(&self, step: &Step) -> Result<bool> {
        let failed = |source| file_error(&self.path, "writing the journal", source);
        let file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(false);
        }
        // What a crash has cut short must not run into this line.
        let text = fs::read(&self.path).map_err(failed)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(failed)?;
        let mut entry =
            Entry { file, path: self.path.clone(), monitor: self.monitor(), last: Some(step.clone()) };
        entry.note(step.clone())?;
        Ok(true)
    }
}

/// What a QEMU that was killed cannot take away itself.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "a file of a QEMU that is gone stays behind");
    }
}

fn file_error(path: &Path, doing: &'static str, source: io::Error) -> Error {
    Error::File { path: path.to_owned(), doing, source }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(directory: &Path) -> (Journal, Entry) {
        let journal = Journal::open(directory).unwrap();
        let mut entry = journal.begin().unwrap();
        let from = Some("192.0.2.1".to_owned());
        entry.note(Step::Begin { guest: "web".to_owned(), uuid: None, from }).unwrap();
        (journal, entry)
    }

    #[test]
    fn steps_come_back_in_order_and_the_writer_is_seen_to_live() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, mut entry) = begun(&folder.path().join("new"));
        entry.note(Step::Ready { pid: Some(7) }).unwrap();
        let accounts = journal.accounts().unwrap();
        assert!(accounts[0].active && !accounts[0].may_have_run());
        entry.note(Step::Go).unwrap();
        drop(entry);
        let mut accounts = journal.accounts().unwrap();
        assert!(!accounts[0].active && accounts[0].may_have_run());
        assert_eq!(accounts[0].steps.len(), 3);
        assert!(accounts[0].close(Step::Failed { why: "x".to_owned() }).unwrap());
        assert!(!journal.accounts().unwrap()[0].may_have_run());
    }

    #[test]
    fn what_was_found_at_both_ends_is_no_step_and_holds_up_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, entry) = begun(folder.path());
        drop(entry);
        let read = || journal.accounts().unwrap().pop().unwrap();
        let mut account = read();
        account.settle(true, "ssh xen".to_owned()).unwrap();
        let settled = read().settled.unwrap();
        assert_eq!((settled.here, settled.asked.as_str(), read().steps.len()), (true, "ssh xen", 1));
        account.close(Step::Failed { why: "x".to_owned() }).unwrap();
        assert_eq!((read().settled, read().steps.len()), (None, 2));
    }

    #[test]
    fn an_account_that_is_being_written_is_not_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _entry) = begun(folder.path());
        let mut account = journal.accounts().unwrap().pop().unwrap();
        assert!(!account.close(Step::Failed { why: "x".to_owned() }).unwrap());
        assert_eq!(journal.accounts().unwrap()[0].steps.len(), 1);
    }

    #[test]
    fn a_line_cut_short_by_a_crash_is_a_step_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, mut entry) = begun(folder.path());
        entry.file.write_all(br#"{"unix_ms":1,"step":"go"}"#).unwrap();
        assert!(!journal.accounts().unwrap()[0].may_have_run());
        entry.file.write_all(b"\n").unwrap();
        assert!(journal.accounts().unwrap()[0].may_have_run());
        entry.file.write_all(b"garbage\n").unwrap();
        assert!(journal.accounts().unwrap_err().to_string().contains(".journal: reading the journal"));
    }

    #[test]
    fn a_line_cut_short_by_a_crash_does_not_run_into_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, mut entry) = begun(folder.path());
        entry.file.write_all(br#"{"unix_ms":1,"step":"lo"#).unwrap();
        drop(entry);
        let mut account = journal.accounts().unwrap().pop().unwrap();
        assert!(account.close(Step::Failed { why: "x".to_owned() }).unwrap());
        let steps: Vec<_> = journal.accounts().unwrap().remove(0).steps;
        assert!(matches!(steps.as_slice(), [(_, Step::Begin { .. }), (_, Step::Failed { .. })]), "{steps:?}");
    }

    #[test]
    fn what_xen_said_is_found_by_the_guests_uuid_and_the_last_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let came = |stem: &str, uuid: &str, name: &str| {
            let path = folder.path().join(stem);
            let begin = Step::Begin { guest: name.to_owned(), uuid: Some(uuid.to_owned()), from: None };
            let line = serde_json::to_string(&Line { unix_ms: 1, step: begin }).unwrap();
            fs::write(path.with_extension("journal"), line + "\n").unwrap();
            let mut vm = Vm { xen: Some(hyperferry_vm_model::XenDomain::default()), ..Vm::default() };
            vm.config.name = name.to_owned();
            Home::keep(&path.with_extension(HOME), &vm).unwrap();
        };
        came("1-7", "a", "first");
        came("2-7", "a", "second");
        came("3-7", "b", "other");
        fs::write(folder.path().join("3-7.home"), "{").unwrap();
        let found = |uuid| journal.home_of(uuid).map(|home| home.map(|home| home.config().name.clone()));
        assert_eq!(found("A").unwrap().as_deref(), Some("second"));
        assert_eq!(found("c").unwrap(), None);
        assert!(found("b").unwrap_err().to_string().contains("3-7.home: damaged"));
        assert_eq!(journal.homes().len(), 2);
        assert!(Journal::existing(&folder.path().join("none")).is_none());
    }

    #[test]
    fn nothing_done_leaves_no_file_and_a_socket_has_room_for_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        drop(journal.begin().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let journal = Journal::open(folder.path().join("x".repeat(100))).unwrap();
        assert!(journal.begin().unwrap_err().to_string().contains("107"));
    }
}
