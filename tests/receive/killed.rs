//! What is killed, and when: a receiver, its QEMU, the transport, in every phase. One copy is left, and `resolve` names it.

use std::{
    fs::{self, File},
    io::{Write, pipe},
    os::fd::OwnedFd,
    thread,
};

use hyperferry_testkit::{
    cut::{self, Kill, Phase, Strike},
    witness,
};
use serde_json::Value;

use super::{
    Move,
    common::{self, Run, command, names, plain, qemus, script, slim, start_of, text},
    sender::{BANNER, GO, READY, REPORT, kill, wait_for},
    xl,
};

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

impl Move {
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

    /// With a source that answers like this: `$asked` has what it was asked.
    fn resolve_with(&self, answer: &str, more: &[&str]) -> Run {
        let folder = self.folder.path();
        script(
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
        let slow = script(folder.path(), "qemu", &slow);
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
