//! `hyperferry receive` and `resolve`: a scripted sender at the other end of two pipes, QEMU's emulation behind them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests may, their helpers too"
)]

mod common;
#[path = "common/sender.rs"]
mod sender;
#[path = "common/xl.rs"]
mod xl;

use std::{
    fs::{self, File},
    io::{Write, pipe},
    ops::{Deref, DerefMut},
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use common::{Run, command, names, patch, plain, qemus, run, slim, start_of, text, with_config};
use hyperferry_testkit::{
    Fixture,
    cut::{self, Kill, Phase, Strike},
    witness,
};
use sender::{BANNER, GO, READY, REPORT, Sender, kill, wait_for};
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

    /// Puts something between the two that strikes in that phase.
    fn cut(&mut self, kill: Kill, at: Phase) {
        let strike = Strike::new(kill, at, self.child.id());
        let (from_us, to_cut) = pipe().unwrap();
        let (from_cut, to_us) = pipe().unwrap();
        let to = self.to.replace(File::from(OwnedFd::from(to_cut))).unwrap();
        let from = std::mem::replace(&mut self.from, File::from(OwnedFd::from(from_cut)));
        thread::spawn(move || {
            cut::between((from_us, to_us), (from, to), |phase| strike.reached(phase), drop)
        });
    }

    /// Sends a guest as `xl migrate` does.
    fn send(&mut self, stream: &[u8]) -> Sent {
        if !self.heard(BANNER) || self.to.as_mut().unwrap().write_all(stream).is_err() || !self.heard(READY) {
            return Sent::Resumes;
        }
        self.says(GO);
        match (self.heard(REPORT), self.heard(&[0])) {
            (true, true) => Sent::Destroys,
            (true, false) if self.heard(GO) => Sent::Resumes,
            _ => Sent::KeepsItStopped,
        }
    }

    fn heard(&mut self, words: &[u8]) -> bool {
        self.hear(words.len()) == words
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
        self.processes("-incoming")
    }

    /// Those whose command line has a path of ours and this word.
    fn processes(&self, word: &str) -> Vec<u32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let ours = entries.filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            let has = |word: &str| line.contains(word);
            (has(text(self.folder.path())) && has(word)).then(|| entry.file_name().to_str()?.parse().ok())?
        });
        ours.collect()
    }

    /// No QEMU, no socket, and no word of the guest.
    #[track_caller]
    fn left_nothing(&self) {
        wait_for("the end of QEMU", || self.processes("-S").is_empty());
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

    /// With a source that answers like this: `$asked` has what it was asked.
    fn resolve_with(&self, answer: &str, more: &[&str]) -> Run {
        let folder = self.folder.path();
        common::script(
            folder,
            "ssh",
            &format!("asked=\"$*\"\necho \"$asked\" >{}/asked\n{answer}", folder.display()),
        );
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let journal = self.journal();
        let arguments = [&["resolve", text(&journal)], more].concat();
        common::finish(command(&arguments).env("PATH", path), Some(b"a password\n"))
    }

    /// With a Xen host that has these domains, each a name and its state.
    fn resolve_among(&self, domains: &[(&str, &str)]) -> String {
        self.resolve_with(&xl::list(UUID, domains), &[]).expect(0).stdout
    }

    /// What QEMU answers to a command of whoever manages the guest now.
    fn ask(&self, command: &str) -> String {
        let names = names(&self.journal());
        let name = names.iter().find(|name| name.ends_with(".qmp")).unwrap();
        common::ask(&self.journal().join(name), command)
    }
}

/// The UUID of the captured guest.
const UUID: &str = "386ec7c8-4ee8-4950-8df2-058ebbccd87a";

/// What the sender does with its own copy in the end.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// It goes on there.
    Resumes,
    /// It stays, under another name, until somebody decides.
    KeepsItStopped,
    /// It is gone.
    Destroys,
}

impl Drop for Move {
    fn drop(&mut self) {
        for pid in self.processes("-S") {
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
fn a_qemu_that_dies_before_it_runs_gives_the_guest_back() {
    for qemu in qemus() {
        let mut a_move = Move::until_ready(&qemu, &slim(&plain()), &[]);
        kill("-KILL", a_move.qemus().pop().unwrap());
        wait_for("the end of QEMU", || a_move.qemus().is_empty());
        a_move.says(GO);
        a_move.hears(REPORT);
        a_move.hears(&[1]);
        a_move.hears(GO);
        a_move.ends(5);
        assert_eq!(a_move.step_names().last().unwrap(), "failed");
        a_move.left_nothing();
        assert!(a_move.resolve().contains("at the source"));
    }
}

#[test]
fn a_qemu_that_dies_among_the_pages_leaves_the_guest_to_the_sender() {
    let stream = plain();
    for qemu in qemus() {
        let mut a_move = Move::begin(&qemu, &["--allow", "tsc-frequency"]);
        a_move.hears(BANNER);
        a_move.says(&stream[..stream.len() / 2]);
        wait_for("the stream", || a_move.stderr().contains("moving memory"));
        kill("-KILL", a_move.qemus().pop().unwrap());
        let said = a_move.ends(5);
        assert!(said.contains("QEMU ended (signal: 9"), "{said}");
        assert_eq!(a_move.step_names(), ["begin", "loading", "failed"]);
        a_move.left_nothing();
    }
}

#[test]
fn a_receiver_that_is_killed_leaves_a_copy_that_is_never_run() {
    let stream = slim(&plain());
    for qemu in qemus() {
        let mut a_move = Move::begin(&qemu, &[]);
        a_move.hears(BANNER);
        a_move.says(&stream[..start_of(&stream, "X86_TSC_INFO")]);
        wait_for("QEMU", || !a_move.qemus().is_empty());
        wait_for("the stream", || a_move.stderr().contains("moving memory"));
        a_move.child.kill().unwrap();
        a_move.child.wait().unwrap();
        wait_for("QEMU's own end", || a_move.qemus().is_empty());
        assert!(a_move.resolve().contains("at the source"));
        a_move.left_nothing();

        let mut a_move = Move::until_ready(&qemu, &slim(&plain()), &[]);
        a_move.child.kill().unwrap();
        a_move.child.wait().unwrap();
        assert_eq!(a_move.qemus().len(), 1, "nobody was there to end it");
        let resolved = a_move.resolve();
        assert!(resolved.contains("at the source"), "{resolved}");
        a_move.left_nothing();
    }
}

/// What `resolve` cannot see must not appear behind its back.
#[test]
fn a_receiver_that_is_killed_while_its_qemu_starts_leaves_nothing() {
    let stream = plain();
    for qemu in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let slow = format!("case \"$*\" in *-incoming*) sleep 1;; esac; exec {} \"$@\"", text(&qemu));
        let slow = common::script(folder.path(), "qemu", &slow);
        let mut a_move = Move::begin(&slow, &["--allow", "tsc-frequency"]);
        a_move.hears(BANNER);
        a_move.says(&stream[..start_of(&stream, "PAGE_DATA")]);
        wait_for("QEMU", || !a_move.qemus().is_empty());
        a_move.child.kill().unwrap();
        a_move.child.wait().unwrap();
        assert!(a_move.resolve().contains("at the source"));
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

/// In each phase, and QEMU of either version.
fn kill_in_each_phase(what: Kill, phases: &[Phase], judge: impl Fn(Phase, Sent, &Move)) {
    let stream = plain();
    let qemus = qemus();
    for (qemu, phase) in qemus.iter().cycle().zip(phases) {
        let mut a_move = Move::begin(qemu, &["--allow", "tsc-frequency"]);
        a_move.cut(what, *phase);
        let sent = a_move.send(&stream);
        a_move.goes_away();
        a_move.child.wait().unwrap();
        println!("{what} killed at {phase}: {sent:?}\n{}", a_move.resolve());
        judge(*phase, sent, &a_move);
    }
}

#[track_caller]
fn stays_at_the_source(a_move: &Move) {
    let resolved = a_move.resolve();
    assert!(resolved.is_empty() || resolved.contains("at the source"), "{resolved}");
    a_move.left_nothing();
}

#[track_caller]
fn runs_here(a_move: &Move) {
    assert_eq!(a_move.qemus().len(), 1);
    let serial = a_move.folder.path().join("fixture.serial");
    wait_for("beats", || witness::beats(&fs::read_to_string(&serial).unwrap()).len() >= 3);
    assert!(a_move.resolve().contains("here: it runs"));
}

/// The two ends hear nothing of each other any more from that phase on.
fn parted(phase: Phase, sent: Sent, a_move: &Move) {
    if phase == Phase::Report {
        assert_eq!(sent, Sent::KeepsItStopped);
        runs_here(a_move);
    } else {
        assert_eq!(sent, if phase < Phase::Go { Sent::Resumes } else { Sent::KeepsItStopped }, "{phase}");
        stays_at_the_source(a_move);
    }
}

#[test]
fn a_gateway_killed_in_any_phase_leaves_one_copy() {
    kill_in_each_phase(Kill::Gateway, &Phase::ALL, parted);
}

#[test]
fn a_transport_cut_in_any_phase_leaves_one_copy() {
    kill_in_each_phase(Kill::Transport, &Phase::ALL, parted);
}

#[test]
fn a_qemu_killed_in_any_phase_leaves_one_copy() {
    // Before the configuration there is none.
    let phases = &Phase::ALL[1..];
    kill_in_each_phase(Kill::Qemu, phases, |phase, sent, a_move| match phase {
        // It ran by then. That it ends afterwards is no matter of the move.
        Phase::Report => {
            assert_eq!(sent, Sent::Destroys);
            assert!(a_move.resolve().contains("nowhere: it ran here"));
        }
        _ => {
            assert_eq!(sent, Sent::Resumes, "{phase}");
            stays_at_the_source(a_move);
        }
    });
}

#[test]
fn killed_at_go_both_ends_are_asked_and_one_copy_is_named() {
    const ASIDE: (&str, &str) = ("fixture--migratedaway", "---ss-");
    const RUNS: (&str, &str) = ("fixture", "-b----");
    let stream = slim(&plain());
    for qemu in qemus() {
        // The word was lost: ours has never run, and the source keeps its own aside.
        let mut a_move = Move::begin(&qemu, &["--allow", "tsc-frequency"]);
        a_move.cut(Kill::Gateway, Phase::Go);
        assert_eq!(a_move.send(&stream), Sent::KeepsItStopped);
        a_move.child.wait().unwrap();
        let told = a_move.resolve_among(&[ASIDE]);
        let line = "ssh 192.0.2.1 'xl rename fixture--migratedaway fixture && \
                    { xl resume fixture || xl save -c fixture /dev/null; }'";
        assert!(told.contains("  at the source: its copy there is suspended; ours is gone"), "{told}");
        assert!(
            told.contains("seen at the source (ssh 192.0.2.1): fixture--migratedaway is suspended"),
            "{told}"
        );
        assert!(told.ends_with(&format!(": {line}\n")), "{told}");
        let asked = fs::read_to_string(a_move.folder.path().join("asked")).unwrap();
        assert_eq!(asked, "-o BatchMode=yes -o ConnectTimeout=8 192.0.2.1 xl list -v\n");
        assert!(a_move.resolve_among(&[RUNS]).contains("  at the source: it runs there; ours is gone"));
        assert!(a_move.resolve_among(&[]).contains("  nowhere: ours is gone and never ran"));
        let unreached =
            a_move.resolve_with("read word && exit 1; echo 'no route' >&2; exit 255", &[]).expect(0).stdout;
        assert!(unreached.contains("  at the source: ours is gone and never ran ("), "{unreached}");
        assert!(
            unreached
                .ends_with("the source could not be asked: it cannot be reached: no route (ssh 192.0.2.1)\n")
        );
        a_move.left_nothing();

        // The word was heard, and we were killed before the guest ran.
        let mut a_move = Move::until_ready(&qemu, &plain(), &[]);
        a_move.child.kill().unwrap();
        a_move.child.wait().unwrap();
        let journal = a_move.journal();
        let name = names(&journal).into_iter().find(|name| name.ends_with(".journal")).unwrap();
        let mut account = File::options().append(true).open(journal.join(name)).unwrap();
        account.write_all(b"{\"unix_ms\":1,\"step\":\"go\"}\n").unwrap();
        let told = a_move.resolve_among(&[RUNS]);
        assert!(told.contains("  at the source: it was taken back and runs there"), "{told}");
        assert!(told.contains("  do: send `quit` to QMP "), "{told}");
        let told = a_move.resolve_with(&xl::list(UUID, &[ASIDE]), &["--json"]).expect(0).stdout;
        let told = &serde_json::from_str::<Value>(&told).unwrap()["guests"][0];
        let found = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        assert_eq!([found("guest"), found("uuid"), found("where")], ["fixture", UUID, "here"]);
        assert_eq!((&told["there"]["copy"], &told["provided"]), (&"aside".into(), &Value::Null));
        assert_eq!(told["commands"][0]["shell"], "ssh 192.0.2.1 xl destroy fixture--migratedaway");
        assert_eq!(
            (&told["commands"][1]["execute"], &told["here"]["state"]),
            (&"cont".into(), &"paused".into())
        );
        assert!(a_move.resolve_among(&[]).contains("  here: it was given to us, and has not run yet"));
        a_move.ask("cont");
        let told = a_move.resolve_among(&[ASIDE]);
        assert!(told.contains("  here: it runs; the copy there must not"), "{told}");
        let two =
            a_move.resolve_with(&xl::list(UUID, &[RUNS]), &[]).expect(6).says("two copies run: fixture");
        assert!(two.stdout.contains("  TWO COPIES RUN: one at either end"), "{}", two.stdout);
        assert!(two.stdout.contains("  do: ssh 192.0.2.1 xl pause fixture"), "{}", two.stdout);
    }
}
