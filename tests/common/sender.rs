//! The sender of an `xl migrate`, scripted: it talks to whatever command takes the guest.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "tests may, their helpers too")]

use std::{
    fs::{self, File},
    io::{Read, Write, pipe},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

pub use hyperferry_testkit::cut::{BANNER, GO, READY, REPORT};

use crate::common::wait_within;

const PATIENCE: Duration = Duration::from_secs(180);

/// A sender at the other end of a command's standard input and output.
pub struct Sender {
    pub child: Child,
    pub to: Option<File>,
    pub from: File,
    stderr: PathBuf,
}

impl Sender {
    /// Starts the command; its words go to a file in that folder.
    pub fn of(command: &mut Command, folder: &Path) -> Self {
        let errors = File::create(folder.join("stderr")).unwrap();
        Self::with_words_to(errors, command, folder)
    }

    /// Starts it where nobody hears its words.
    pub fn deaf_to(command: &mut Command, folder: &Path) -> Self {
        File::create(folder.join("stderr")).unwrap();
        let (_, errors) = pipe().unwrap();
        Self::with_words_to(errors, command, folder)
    }

    fn with_words_to(errors: impl Into<Stdio>, command: &mut Command, folder: &Path) -> Self {
        let stderr = folder.join("stderr");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (to, from) = (File::from(OwnedFd::from(to)), File::from(OwnedFd::from(from)));
        Self { child, to: Some(to), from, stderr }
    }

    /// Up to a guest that is loaded.
    #[track_caller]
    pub fn sends(&mut self, stream: &[u8]) {
        self.hears(BANNER);
        self.says(stream);
        self.hears(READY);
    }

    /// From there to a guest that runs elsewhere.
    #[track_caller]
    pub fn gives_away(&mut self) {
        self.says(GO);
        self.hears(REPORT);
        self.hears(&[0]);
    }

    pub fn says(&mut self, words: &[u8]) {
        // A receiver that has refused closes its end.
        let _ = self.to.as_mut().unwrap().write_all(words);
    }

    #[track_caller]
    pub fn hears(&mut self, words: &[u8]) {
        let heard = self.hear(words.len());
        assert_eq!(heard.escape_ascii().to_string(), words.escape_ascii().to_string(), "{}", self.stderr());
    }

    /// As many bytes, or what comes before the end.
    pub fn hear(&mut self, length: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        (&mut self.from).take(length as u64).read_to_end(&mut heard).unwrap();
        heard
    }

    pub fn goes_away(&mut self) {
        self.to = None;
    }

    /// The command ends with this code, and without another word to us. Gives its words.
    #[track_caller]
    pub fn ends(&mut self, code: i32) -> String {
        let mut heard = Vec::new();
        self.from.read_to_end(&mut heard).unwrap();
        let status = self.child.wait().unwrap();
        let said = self.stderr();
        assert_eq!((status.code(), heard.escape_ascii().to_string()), (Some(code), String::new()), "{said}");
        said
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The QEMUs that wait for a guest of this journal, or have it.
pub fn qemus_of(journal: &Path) -> Vec<u32> {
    processes_of(journal, "-incoming")
}

/// Those whose command line has a path below this folder, and this word.
pub fn processes_of(folder: &Path, word: &str) -> Vec<u32> {
    let folder = folder.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let ours = entries.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        let has = |word: &str| line.contains(word);
        (has(folder) && has(word)).then(|| entry.file_name().to_str()?.parse().ok())?
    });
    ours.collect()
}

/// Ends the QEMUs of a journal when a test is over.
pub struct Cleanup(pub PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for pid in qemus_of(&self.0) {
            kill("-KILL", pid);
        }
    }
}

pub fn kill(signal: &str, pid: u32) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).status();
}

#[track_caller]
pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}
