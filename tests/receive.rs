//! `hyperferry receive` and `resolve`: a scripted sender at the other end of two pipes, QEMU's emulation behind them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests may, their helpers too"
)]

mod common;
#[path = "receive/killed.rs"]
mod killed;
#[path = "common/sender.rs"]
mod sender;
#[path = "common/xl.rs"]
mod xl;

use std::{
    fs,
    ops::{Deref, DerefMut},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use common::{command, names, patch, plain, qemus, run, slim, start_of, text, with_config};
use hyperferry_testkit::{Fixture, witness};
use sender::{BANNER, GO, REPORT, Sender, kill, processes_of, qemus_of, wait_for};
use serde_json::Value;

/// A sender, and the receiver that it talks to.
struct Move {
    sender: Sender,
    folder: tempfile::TempDir,
}

impl Deref for Move {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl DerefMut for Move {
    fn deref_mut(&mut self) -> &mut Sender {
        &mut self.sender
    }
}

impl Move {
    fn begin(qemu: &Path, more: &[&str]) -> Self {
        Self::begin_as(Sender::of, qemu, more)
    }

    fn begin_as(start: impl Fn(&mut Command, &Path) -> Sender, qemu: &Path, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (journal, serial) = (folder.path().join("journal"), folder.path().join("{name}.serial"));
        let arguments = ["receive", "--qemu", text(qemu), "--accel", "tcg", "--journal", text(&journal)];
        let arguments = [&arguments[..], &["--serial", text(&serial)], more].concat();
        let mut command = command(&arguments);
        command.env("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22").env("TMPDIR", folder.path());
        Self { sender: start(&mut command, folder.path()), folder }
    }

    /// Up to a guest that is loaded.
    fn until_ready(qemu: &Path, stream: &[u8], more: &[&str]) -> Self {
        // The captures are from another machine.
        let mut a_move = Self::begin(qemu, &[&["--allow", "tsc-frequency"], more].concat());
        a_move.sends(stream);
        a_move
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    /// The steps of the one move in the journal.
    fn steps(&self) -> Vec<Value> {
        let names = names(&self.journal());
        let name = names.iter().find(|name| name.ends_with(".journal")).unwrap();
        let text = fs::read_to_string(self.journal().join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn step_names(&self) -> Vec<String> {
        self.steps().iter().map(|step| step["step"].as_str().unwrap().to_owned()).collect()
    }

    /// The QEMUs that wait for the guest, or have it.
    fn qemus(&self) -> Vec<u32> {
        qemus_of(self.folder.path())
    }

    /// Those that only tell their dialect, too.
    fn all_qemus(&self) -> Vec<u32> {
        processes_of(self.folder.path(), "-S")
    }

    /// No QEMU, no socket, and no word of the guest.
    #[track_caller]
    fn left_nothing(&self) {
        wait_for("the end of QEMU", || self.all_qemus().is_empty());
        let left = names(&self.journal());
        assert!(left.iter().all(|name| name.ends_with(".journal")), "{left:?}");
        for serial in names(self.folder.path()).iter().filter(|name| name.ends_with(".serial")) {
            assert_eq!(
                fs::read_to_string(self.folder.path().join(serial)).unwrap(),
                "",
                "the guest has not run"
            );
        }
    }

    fn resolve(&self) -> String {
        run(&["resolve", "--offline", text(&self.journal())]).expect(0).stdout
    }

    /// What QEMU answers to a command of whoever manages the guest now.
    fn ask(&self, command: &str) -> String {
        let names = names(&self.journal());
        let name = names.iter().find(|name| name.ends_with(".qmp")).unwrap();
        common::ask(&self.journal().join(name), command)
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        for pid in self.all_qemus() {
            kill("-KILL", pid);
        }
    }
}

#[test]
fn a_guest_is_handed_over_word_by_word_and_goes_on() {
    for qemu in qemus() {
        let fixture = Fixture::named("xen/witness-1vcpu").unwrap();
        let mut a_move = Move::until_ready(&qemu, &fixture.stream().unwrap(), &[]);
        let serial = a_move.folder.path().join("fixture.serial");
        assert!(a_move.ask("query-status").contains(r#""running": false"#));
        assert_eq!(fs::read_to_string(&serial).unwrap(), "", "the sender has not given it away");
        assert_eq!(a_move.step_names(), ["begin", "loading", "ready"]);
        assert!(a_move.resolve().contains("under way"));
        a_move.says(GO);
        a_move.hears(REPORT);
        a_move.hears(&[0]);
        let said = a_move.ends(0);
        assert_eq!(a_move.step_names(), ["begin", "loading", "ready", "go", "running"]);
        assert_eq!(a_move.steps()[0]["from"], "192.0.2.1");
        let pid = a_move.qemus().pop().unwrap();
        assert!(said.contains(&format!("QEMU process {pid}, QMP ")), "{said}");
        let beats = || witness::beats(&fs::read_to_string(&serial).unwrap());
        wait_for("beats", || beats().len() >= 5);
        let last = witness::beats(&fixture.origin.serial).pop().unwrap().beat;
        assert!((last..=last + 2).contains(&beats()[0].beat), "{last}, then {:?}", beats()[0]);
        assert!(a_move.resolve().contains("here: it runs"));
        a_move.ask("quit");
        wait_for("the end of QEMU", || a_move.qemus().is_empty());
        assert!(a_move.resolve().contains("nowhere: it ran here"));
    }
}

/// The ssh that carries them may be gone, and what is said behind "go" must not end the guest.
#[test]
fn words_that_nobody_hears_end_nothing() {
    for qemu in qemus() {
        let units = tempfile::tempdir().unwrap();
        let more =
            ["-v", "--allow", "tsc-frequency", "--unit", "script", "--unit-directory", text(units.path())];
        let mut a_move = Move::begin_as(Sender::deaf_to, &qemu, &more);
        a_move.sends(&plain());
        a_move.gives_away();
        a_move.ends(0);
        assert_eq!(a_move.step_names().last().unwrap(), "running");
        assert_eq!(names(units.path()), ["hyperferry-fixture.sh"]);
    }
}

#[test]
fn a_sender_that_does_not_give_its_guest_away_keeps_it() {
    let stream = slim(&plain());
    for qemu in qemus() {
        for (words, why) in [
            (&b""[..], "it went away instead"),
            (&GO[..43], "it said"),
            (b"domain is mine, you are cleared to go home!!\0", "it said"),
        ] {
            let mut a_move = Move::until_ready(&qemu, &stream, &[]);
            a_move.says(words);
            a_move.goes_away();
            assert!(a_move.ends(5).contains(why));
            assert_eq!(a_move.step_names(), ["begin", "loading", "ready", "failed"]);
            a_move.left_nothing();
            assert!(a_move.resolve().contains("at the source"));
        }
    }
}

#[test]
fn a_stream_that_breaks_off_leaves_nothing() {
    let stream = slim(&plain());
    let memory = start_of(&stream, "PAGE_DATA");
    for qemu in qemus() {
        for (end, code) in [(30, 3), (memory - 4, 3), (memory + 1000, 3), (stream.len() - 8, 3)] {
            let mut a_move = Move::begin(&qemu, &[]);
            a_move.hears(BANNER);
            a_move.says(&stream[..end]);
            a_move.goes_away();
            assert!(a_move.ends(code).contains("@0x"), "cut at {end}");
            a_move.left_nothing();
        }
    }
}

#[test]
fn what_cannot_move_is_refused_before_a_page() {
    let pci = serde_json::json!([{"bus": 3, "dev": 0, "func": 0}]);
    let stream = with_config(&plain(), |config| config["pcidevs"] = pci);
    for qemu in qemus() {
        let mut a_move = Move::begin(&qemu, &[]);
        a_move.hears(BANNER);
        // The sender waits with its first page: nothing but a refusal can end this.
        a_move.says(&stream[..start_of(&stream, "PAGE_DATA")]);
        assert!(a_move.ends(4).contains("refused [passthrough]"));
        a_move.left_nothing();
    }
}

#[test]
fn what_can_only_be_refused_late_is_refused_before_ready() {
    let stream = slim(&plain());
    let khz = start_of(&stream, "X86_TSC_INFO") + 12;
    let slow = patch(&stream, khz, &100_000_u32.to_le_bytes());
    for qemu in qemus() {
        let mut a_move = Move::begin(&qemu, &[]);
        a_move.hears(BANNER);
        a_move.says(&slow);
        let said = a_move.ends(4);
        assert!(
            said.contains("refused [tsc-frequency]") && said.contains("the guest was paused for this"),
            "{said}"
        );
        assert_eq!(a_move.step_names(), ["begin", "loading", "failed"]);
        a_move.left_nothing();
    }
}

#[test]
fn a_signal_ends_it_before_ready_and_not_behind() {
    let stream = slim(&plain());
    for qemu in qemus().into_iter().take(1) {
        let mut a_move = Move::begin(&qemu, &[]);
        a_move.hears(BANNER);
        a_move.says(&stream[..start_of(&stream, "X86_TSC_INFO")]);
        wait_for("QEMU", || !a_move.qemus().is_empty());
        kill("-TERM", a_move.child.id());
        assert!(a_move.ends(5).contains("stopped by SIGTERM"));
        a_move.left_nothing();

        let mut a_move = Move::until_ready(&qemu, &stream, &["--paused"]);
        kill("-TERM", a_move.child.id());
        wait_for("the answer", || a_move.stderr().contains("SIGTERM comes too late"));
        a_move.says(GO);
        a_move.hears(REPORT);
        a_move.hears(&[0]);
        a_move.ends(0);
        assert_eq!(a_move.steps()[4]["paused"], true);
        assert!(a_move.ask("query-status").contains(r#""running": false"#));
        assert!(a_move.resolve().contains("here: QEMU is in state"));
    }
}

#[test]
fn a_host_that_cannot_take_a_guest_does_not_ask_for_one() {
    let mut a_move = Move::begin(Path::new("/nowhere/qemu"), &[]);
    assert!(a_move.ends(5).contains("/nowhere/qemu"));
    a_move.left_nothing();
    assert_eq!(names(&a_move.journal()), [""; 0], "nothing was begun");
}

#[test]
fn under_the_name_xl_only_xls_own_call_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let xl = folder.path().join("xl");
    symlink(env!("CARGO_BIN_EXE_hyperferry"), &xl).unwrap();
    common::finish(Command::new(&xl).arg("list"), None).expect(2).says("not `list`");
    common::finish(Command::new(&xl).args(["migrate-receive", "-r"]), None).expect(2).says("Remus");
}
