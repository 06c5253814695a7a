//! What the tests of the command share: starting it, and streams that are made from a captured one by hand.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests may, their helpers too"
)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hyperferry_testkit::{Fixture, tools};
use hyperferry_xen_stream::StreamReader;

/// How a run of the command ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The exit code, or what was said instead.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stderr: {}\nstdout: {:.2000}", self.stderr, self.stdout);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Standard error has these words.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "{words:?} is not in: {}", self.stderr);
        self
    }
}

/// The command with these arguments.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperferry"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

/// Runs it.
pub fn run(arguments: &[&str]) -> Run {
    finish(&mut command(arguments), None)
}

/// Runs it with these bytes on its standard input.
pub fn pipe(arguments: &[&str], input: &[u8]) -> Run {
    finish(&mut command(arguments), Some(input))
}

/// Runs a command to its end.
pub fn finish(command: &mut Command, input: Option<&[u8]>) -> Run {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let feeder = child.stdin.take().zip(input.map(<[u8]>::to_vec)).map(|(mut pipe, bytes)| {
        // A command that has seen enough closes its end.
        std::thread::spawn(move || drop(pipe.write_all(&bytes)))
    });
    let output = child.wait_with_output().unwrap();
    feeder.into_iter().for_each(|feeder| feeder.join().unwrap());
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A Xen fixture's stream.
pub fn fixture(name: &str) -> Vec<u8> {
    Fixture::named(name).unwrap().stream().unwrap()
}

/// The plainest guest there is: one vCPU, no devices.
pub fn plain() -> Vec<u8> {
    fixture("xen/witness-1vcpu")
}

/// The names of a file's arguments as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes bytes to a file of that name.
pub fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    text(&path).to_owned()
}

/// The same for a program that a shell runs.
pub fn script(folder: &Path, name: &str, lines: &str) -> PathBuf {
    let path = PathBuf::from(file(folder, name, format!("#!/bin/sh\n{lines}\n").as_bytes()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// Every element of a Xen stream: its name, and where it starts.
pub fn elements(stream: &[u8]) -> Vec<(String, usize)> {
    let mut reader = StreamReader::new(stream);
    let mut found: Vec<(String, usize)> = Vec::new();
    loop {
        let start = usize::try_from(reader.offset()).unwrap();
        let Some(event) = reader.next_event().unwrap() else { return found };
        if !matches!(event, hyperferry_xen_stream::Event::Pages(_)) {
            found.push((event.name().into_owned(), start));
        }
    }
}

/// Where the first element of that name starts.
#[track_caller]
pub fn start_of(stream: &[u8], name: &str) -> usize {
    elements(stream).into_iter().find(|(found, _)| found == name).unwrap().1
}

/// A stream with all its memory left out but one page: small, and as legal as before.
pub fn slim(stream: &[u8]) -> Vec<u8> {
    let elements = elements(stream);
    let first = elements.iter().find(|(name, _)| name == "PAGE_DATA").unwrap().1;
    let last = elements.iter().rposition(|(name, _)| name == "PAGE_DATA").unwrap();
    let after = elements[last + 1].1;
    let mut slim = stream[..first].to_vec();
    // PAGE_DATA: type, length, count, reserved, page frame 7, its bytes.
    slim.extend([1, 0, 0, 0, 16, 16, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    slim.extend([0x5a; 4096]);
    slim.extend(&stream[after..]);
    slim
}

/// A stream whose configuration was changed.
pub fn with_config(stream: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    // xl header: 44 bytes, optional_data_len, config_len, config.
    let word = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap()) as usize;
    let (data, config) = (word(44), word(48));
    let mut json = serde_json::from_slice(&stream[52..52 + config - 1]).unwrap();
    change(&mut json);
    let mut text = json.to_string().into_bytes();
    text.push(0);
    let length = u32::try_from(text.len()).unwrap();
    let mut changed = stream[..44].to_vec();
    changed.extend((length + 4).to_le_bytes());
    changed.extend(length.to_le_bytes());
    changed.extend(text);
    changed.extend(&stream[48 + data..]);
    changed
}

/// A stream with these bytes put in.
pub fn insert(stream: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    [&stream[..at], bytes, &stream[at..]].concat()
}

/// A stream with these bytes in place of others.
pub fn patch(stream: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut patched = stream.to_vec();
    patched[at..at + bytes.len()].copy_from_slice(bytes);
    patched
}

/// Each QEMU that is here; says what is skipped if one is not.
pub fn qemus() -> Vec<PathBuf> {
    let found = tools::QEMU_VERSIONS.iter().filter_map(|version| match tools::qemu(version) {
        Ok(program) => Some(program),
        Err(error) => {
            println!("SKIPPED with QEMU {version}: {error}");
            None
        }
    });
    found.collect()
}

/// Names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a QEMU answers to a command on its QMP socket.
pub fn ask(socket: &Path, command: &str) -> String {
    let mut socket = UnixStream::connect(socket).unwrap();
    socket.write_all(br#"{"execute":"qmp_capabilities"}"#).unwrap();
    socket.write_all(format!("{{\"execute\":\"{command}\",\"id\":7}}\n").as_bytes()).unwrap();
    let mut heard = String::new();
    while !heard.contains(r#""id": 7"#) {
        let mut some = [0; 4096];
        match socket.read(&mut some).unwrap() {
            0 => return heard,
            count => heard.push_str(&String::from_utf8_lossy(&some[..count])),
        }
    }
    heard
}

/// Waits until it is done, and no longer than this.
#[track_caller]
pub fn wait_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < patience, "no {what} in {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
