//! `hyperferry send`: witnesses leave real QEMUs, for our own receiver or for one that the test plays.

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

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use common::{Run, command, names, qemus, run, start_of, text};
use hyperferry_testkit::{
    Fixture,
    cut::Tee,
    tools,
    witness::{self, Beat},
};
use hyperferry_xen_stream::{Event, StreamReader, libxl};
use sender::{BANNER, Cleanup, GO, READY, REPORT, Sender, kill, wait_for};

const UUID: &str = "404ed65b-3579-49d9-afd7-4b03c526326d";
/// What a guest does that can go to Xen: its ticks come from the PIT.
const CMDLINE: &str = "avx=off mem=1 skip=pat,cr2 lapic=off";
/// The capture is from another machine.
const ALLOWED: &str = "tsc-frequency";

/// Where SeaBIOS puts the memory of a display adapter: below the pages that Xen's toolstack has for itself.
const VIDEO_MEMORY: Range<u64> = 0xf000_0000..0xfeff_0000;

/// One guest at a time: the others' emulation would take the time that a guest's timers are checked against.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> impl Drop {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The witness' kernel, if it was built.
fn kernel() -> Option<PathBuf> {
    tools::witness().inspect_err(|error| println!("SKIPPED: {error}")).ok()
}

/// What a guest has said so far.
fn beats(serial: &Path) -> Vec<Beat> {
    witness::beats(&fs::read_to_string(serial).unwrap_or_default())
}

/// The same, with no beat missing and no check failed.
#[track_caller]
fn sound_beats(serial: &Path) -> Vec<Beat> {
    let text = fs::read_to_string(serial).unwrap();
    let beats = witness::beats(&text);
    assert!(beats.iter().all(|beat| beat.bad == 0), "{text}");
    assert!(beats.iter().zip(&beats[1..]).all(|(beat, next)| next.beat == beat.beat + 1), "{text}");
    beats
}

/// A QEMU that somebody else started, with a witness in it.
struct Source {
    folder: tempfile::TempDir,
    child: Child,
}

impl Source {
    /// One that has beaten a few times.
    fn start(qemu: &Path, kernel: &Path, cmdline: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let serial = format!("file:{}", folder.path().join("serial").display());
        let monitor = format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
        let mut command = Command::new(qemu);
        command.args(["-machine", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none"]);
        // The bundled template is of a host without CMPXCHG16B (tests/lab/README.md).
        command.args(["-cpu", "qemu64,-cx16"]);
        command.args(["-name", "web", "-uuid", UUID, "-serial", &serial, "-qmp", &monitor]);
        command.args(["-kernel", text(kernel), "-append", cmdline]).args(more);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let source = Self { folder, child };
        source.goes_on();
        source
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn monitor(&self) -> String {
        text(&self.file("qmp")).to_owned()
    }

    fn journal(&self) -> String {
        text(&self.file("journal")).to_owned()
    }

    fn beats(&self) -> Vec<Beat> {
        beats(&self.file("serial"))
    }

    /// The guest beats on here, without a failed check.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.beats().len();
        wait_for("beats", || self.beats().len() > before + 4);
        sound_beats(&self.file("serial"));
    }

    /// What its QEMU answers.
    fn ask(&self, command: &str) -> String {
        common::ask(&self.file("qmp"), command)
    }

    fn is_in_state(&self, state: &str) -> bool {
        self.ask("query-status").contains(&format!("\"status\": \"{state}\""))
    }

    fn send(&self, options: &[&str], receiver: &[String]) -> Command {
        let (monitor, journal) = (self.monitor(), self.journal());
        let mut command = command(&["send", &monitor, "--journal", &journal]);
        command.args(options).arg("--").args(receiver);
        command
    }

    fn steps(&self) -> Vec<String> {
        let names = names(&self.file("journal"));
        let Some(name) = names.iter().rfind(|name| name.ends_with(".journal")) else { return Vec::new() };
        let text = fs::read_to_string(self.file("journal").join(name)).unwrap();
        let step = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_str().unwrap().to_owned()
        };
        text.lines().map(step).collect()
    }

    fn resolve(&self) -> String {
        run(&["resolve", &self.journal()]).expect(0).stdout
    }

    /// With a destination that has this domain besides its own.
    fn resolve_among(&self, domain: &str) -> String {
        let dom0 = "Domain-0 0 1536 2 r----- 95.1 00000000-0000-0000-0000-000000000000 - -";
        let list =
            format!("cat <<END\nName ID Mem VCPUs State Time(s) UUID Reason-Code\n{dom0}\n{domain}END\n");
        let peer = format!("sh {}", common::file(self.folder.path(), "peer", list.as_bytes()));
        run(&["resolve", &self.journal(), "--peer", &peer]).expect(0).stdout
    }

    /// Takes the last steps of its journal back.
    fn forget(&self, kept: usize) {
        let journal = self.file("journal");
        let name = names(&journal).into_iter().rfind(|name| name.ends_with(".journal")).unwrap();
        let account = fs::read_to_string(journal.join(&name)).unwrap();
        let steps: Vec<_> = account.split_inclusive('\n').take(kept).collect();
        fs::write(journal.join(&name), steps.concat()).unwrap();
    }
}

/// A receiver that the test plays: it gets what the sender says, and says what it is given.
fn played(folder: &Path, play: impl FnOnce(File, File) + Send + 'static) -> Vec<String> {
    let (to, from) = (folder.join("to"), folder.join("from"));
    for pipe in [&to, &from] {
        let _ = fs::remove_file(pipe);
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    }
    let script = "exec 3<&0; cat <&3 >\"$0\" & exec cat <\"$1\"";
    let words = ["sh", "-c", script, text(&to), text(&from)].map(str::to_owned);
    thread::spawn(move || {
        let to = File::open(to).unwrap();
        play(to, OpenOptions::new().write(true).open(from).unwrap());
    });
    words.to_vec()
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Xen stream up to its own end.
fn take_the_guest(from: impl Read) -> Vec<u8> {
    let mut tee = Tee { from, to: Vec::new() };
    let mut reader = StreamReader::new(&mut tee);
    while let Ok(Some(event)) = reader.next_event() {
        if matches!(event, Event::Libxl(libxl::Record::End)) {
            break;
        }
    }
    tee.to
}

fn end(mut child: Child) -> Run {
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Run { code: child.wait().unwrap().code().unwrap_or(-1), stdout: String::new(), stderr }
}

/// A QEMU whose guests are stopped before they are sent (`send::facts`), and do not go on by themselves.
fn loses_writes(qemu: &Path) -> bool {
    text(qemu).contains("7.2")
}

/// A QEMU that does not survive the migration of a guest with a window for Xen's ACPI tables (`send::facts`).
fn aborts_with_a_window(qemu: &Path) -> bool {
    !text(qemu).contains("7.2")
}

/// Each QEMU with a kernel for it.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let Some(kernel) = kernel() else { return Vec::new() };
    qemus().into_iter().map(|qemu| (qemu, kernel.clone())).collect()
}

/// Our own receiver, which is an `xl migrate-receive` like any other, and the QEMU that it leaves.
struct Receiver {
    qemu: PathBuf,
    _cleanup: Cleanup,
    folder: tempfile::TempDir,
}

impl Receiver {
    fn of(qemu: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { qemu: qemu.to_owned(), _cleanup: Cleanup(folder.path().join("journal")), folder }
    }

    fn words(&self) -> Vec<String> {
        let journal = text(&self.folder.path().join("journal")).to_owned();
        let serial = text(&self.folder.path().join("{name}.serial")).to_owned();
        let hyperferry = env!("CARGO_BIN_EXE_hyperferry");
        let words = [hyperferry, "receive", "--qemu", text(&self.qemu), "--accel", "tcg"];
        let more = ["--journal", &journal, "--serial", &serial];
        words.iter().chain(&more).map(|word| (*word).to_owned()).collect()
    }

    fn beats(&self) -> Vec<Beat> {
        self.beats_of("web")
    }

    fn beats_of(&self, guest: &str) -> Vec<Beat> {
        beats(&self.folder.path().join(format!("{guest}.serial")))
    }

    /// Where the QEMU that it left listens.
    fn monitor(&self) -> String {
        let journal = self.folder.path().join("journal");
        let names = names(&journal);
        let name = names.iter().rfind(|name| name.ends_with(".qmp")).unwrap();
        text(&journal.join(name)).to_owned()
    }

    /// The guest beats on there, from where it was, without a failed check.
    #[track_caller]
    fn goes_on_from(&self, before: &[Beat]) {
        wait_for("beats at the destination", || self.beats().len() > 4);
        let beats = sound_beats(&self.folder.path().join("web.serial"));
        let last = before.last().unwrap().beat;
        assert!((last..=last + 2).contains(&beats[0].beat), "{last}, then {:?}", beats[0]);
    }
}

#[test]
fn a_guest_goes_by_xens_stream_into_another_qemu_and_on_from_there() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        let mut source = Source::start(&qemu, &kernel, CMDLINE, &[]);
        let first = Receiver::of(&qemu);
        let sent = common::finish(&mut source.send(&[], &first.words()), None).expect(0);
        let sent = sent.says("guest web leaves QEMU").says("the guest runs at the destination");
        assert!(!sent.stderr.contains("warning"), "{}", sent.stderr);
        assert!(source.child.wait().unwrap().success(), "its QEMU was told to quit");
        assert_eq!(source.steps(), ["leave", "sending", "ready", "go", "left"]);
        first.goes_on_from(&source.beats());
        assert!(source.resolve().contains("at the destination: it said so itself"));
        // Had its word been lost, the hyperferry there would be asked.
        source.forget(4);
        let told = source.resolve();
        assert!(told.contains("  at the destination: it runs there\n"), "{told}");
        assert!(told.contains("seen at the destination (this host): QEMU is in state running"), "{told}");

        if aborts_with_a_window(&qemu) {
            continue;
        }
        // The journal of the first receiver knows what Xen's stream said; this one is told by name.
        let second = Receiver::of(&qemu);
        let [journal, other] = ["journal", "other"].map(|name| first.folder.path().join(name));
        let home = names(&journal).into_iter().find(|name| name.ends_with(".home")).unwrap();
        let home = journal.join(home);
        let words = ["send", &first.monitor(), "--journal", text(&other), "--home", text(&home), "--"];
        let sent = common::finish(command(&words).args(second.words()), None).expect(0);
        sent.says("note [home]: the guest goes home with").says(text(&home));
        second.goes_on_from(&first.beats());
    }
}

#[test]
fn a_guest_that_came_from_xen_goes_home_as_it_came() {
    let _alone = alone();
    let fixture = Fixture::named("xen/witness-1vcpu").unwrap();
    let stream = fixture.stream().unwrap();
    for qemu in qemus() {
        let here = Receiver::of(&qemu);
        let words = here.words();
        // The capture is from another machine.
        let mut receive = Command::new(&words[0]);
        let mut sender = Sender::of(receive.args(&words[1..]).args(["--allow", ALLOWED]), here.folder.path());
        sender.sends(&stream);
        sender.gives_away();
        sender.ends(0);
        let beats = || here.beats_of("fixture");
        wait_for("beats", || beats().len() > 4);
        if aborts_with_a_window(&qemu) {
            let other = text(&here.folder.path().join("other")).to_owned();
            let mut send = command(&["send", &here.monitor(), "--journal", &other, "--", "false"]);
            common::finish(&mut send, None).expect(4).says("refused [machine]").says("warning [home]");
            continue;
        }

        let journal = text(&here.folder.path().join("journal")).to_owned();
        let home = tempfile::tempdir().unwrap();
        let sent = home.path().join("stream");
        let kept = sent.clone();
        let words = played(home.path(), move |mut to, mut from| {
            from.write_all(BANNER).unwrap();
            fs::write(kept, take_the_guest(&mut to)).unwrap();
            from.write_all(READY).unwrap();
            to.read_exact(&mut [0; 44]).unwrap();
            from.write_all(&[REPORT, &[0][..]].concat()).unwrap();
        });
        let mut send = command(&["send", &here.monitor(), "--journal", &journal, "--"]);
        common::finish(send.args(words), None).expect(0).says("note [home]: the guest goes home with");
        run(&["verify", text(&sent)]).expect(0);
        let sent = fs::read(sent).unwrap();
        // Headers, configuration and policies.
        let before_memory = start_of(&stream, "PAGE_DATA");
        assert_eq!(
            sent[..before_memory].escape_ascii().to_string(),
            stream[..before_memory].escape_ascii().to_string()
        );
        let accounts = run(&["resolve", &journal]).expect(0).stdout;
        assert!(accounts.contains("at the destination: it said so itself"), "{accounts}");
    }
}

#[test]
fn what_is_sent_is_a_stream_that_a_strict_judge_accepts() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        let source = Source::start(&qemu, &kernel, CMDLINE, &["-smp", "2"]);
        let stream = source.file("stream");
        let kept = stream.clone();
        let words = played(source.folder.path(), move |mut to, mut from| {
            from.write_all(BANNER).unwrap();
            fs::write(kept, take_the_guest(&mut to)).unwrap();
        });
        // By its process this time.
        let (pid, journal) = (source.child.id().to_string(), source.journal());
        let mut send = command(&["send", &pid, "--journal", &journal, "--"]);
        common::finish(send.args(words), None).expect(5).says("the guest goes on here");
        source.goes_on();
        run(&["verify", text(&stream)]).expect(0);
    }
}

/// Addresses of the pages of a Xen stream, in its order.
fn addresses(stream: &[u8]) -> Vec<u64> {
    let mut addresses = Vec::new();
    let mut reader = StreamReader::new(stream);
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::PageData(entries) = event {
            addresses.extend(entries.iter().map(|entry| entry.pfn() << 12));
        }
    }
    addresses
}

#[test]
fn video_memory_does_not_wait_for_the_guest_to_stand_still() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        // libxl gives a Cirrus adapter twice the 4 MiB that QEMU gives it.
        for (adapter, megabytes) in [("VGA", 16), ("cirrus-vga", 8)] {
            let source = Source::start(&qemu, &kernel, CMDLINE, &["-device", adapter]);
            let stream = source.file("stream");
            let kept = stream.clone();
            let words = played(source.folder.path(), move |mut to, mut from| {
                from.write_all(BANNER).unwrap();
                fs::write(kept, take_the_guest(&mut to)).unwrap();
            });
            common::finish(&mut source.send(&[], &words), None).expect(5).says("the guest goes on here");
            source.goes_on();
            run(&["verify", text(&stream)]).expect(0);
            let sent = addresses(&fs::read(stream).unwrap());
            let mut video = BTreeSet::new();
            let mut is_new = |address: u64| VIDEO_MEMORY.contains(&address) && video.insert(address);
            let news: Vec<_> = (0..sent.len()).filter(|index| is_new(sent[*index])).collect();
            assert_eq!(news.len(), megabytes << 8, "all of it is there");
            // A guest that is stopped first is sent in one round.
            if !loses_writes(&qemu) {
                let behind = sent[*news.last().unwrap()..].iter();
                let of_ram = behind.filter(|address| **address < VIDEO_MEMORY.start).count();
                assert!(of_ram > 0, "RAM of a later round comes behind it");
            }
        }
    }
}

#[test]
fn what_qemu_says_is_enough_to_refuse_before_a_page() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        for (more, names) in [
            (&["-device", "virtio-rng-pci"][..], "refused [virtio]"),
            (&["-cpu", "qemu64,-cx16,vendor=GenuineIntel"], "refused [cpu-features]"),
        ] {
            let source = Source::start(&qemu, &kernel, CMDLINE, more);
            let words = ["sh", "-c", "echo the receiver was started >&2"].map(str::to_owned);
            let refused = common::finish(&mut source.send(&[], &words), None).expect(4).says(names);
            assert!(!refused.stderr.contains("was started"), "{}", refused.stderr);
            assert!(source.ask("query-migrate").contains(r#""return": {}"#));
            assert_eq!(common::names(&source.file("journal")), [""; 0], "nothing was begun");
            source.goes_on();
        }
    }
}

#[test]
fn a_receiver_that_fails_before_go_leaves_the_guest_where_it_was() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        let source = Source::start(&qemu, &kernel, CMDLINE, &[]);
        for (said, takes, why) in [
            (&b""[..], 0, "the destination ended before its banner"),
            (BANNER, 1, "the destination ended in the middle of the stream"),
            (BANNER, 1_000_000, "the destination ended in the middle of the stream"),
            (BANNER, usize::MAX, "the destination ended before its word that the guest is loaded"),
        ] {
            let words = played(source.folder.path(), move |mut to, mut from| {
                from.write_all(said).unwrap();
                match takes {
                    usize::MAX => drop(take_the_guest(&mut to)),
                    takes => drop(to.read_exact(&mut vec![0; takes])),
                }
            });
            common::finish(&mut source.send(&[], &words), None).expect(5).says(why).says("goes on here");
            assert_eq!(source.steps().last().unwrap(), "failed");
            source.goes_on();
        }
        assert!(source.resolve().contains("here: QEMU is in state running"));
    }
}

#[test]
fn only_the_receiver_gives_a_guest_back_behind_go() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        let up_to_go = |to: &mut File, from: &mut File| {
            from.write_all(BANNER).unwrap();
            take_the_guest(&mut *to);
            from.write_all(READY).unwrap();
            let mut heard = [0; 44];
            to.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, GO);
        };
        let source = Source::start(&qemu, &kernel, CMDLINE, &[]);
        let words = played(source.folder.path(), move |mut to, mut from| {
            up_to_go(&mut to, &mut from);
            from.write_all(&[REPORT, &[3][..], GO].concat()).unwrap();
        });
        let failed = common::finish(&mut source.send(&[], &words), None).expect(5);
        failed.says("could not start the guest (status 3) and has destroyed its copy");
        source.goes_on();

        let words = played(source.folder.path(), move |mut to, mut from| up_to_go(&mut to, &mut from));
        let unknown = common::finish(&mut source.send(&[], &words), None).expect(6);
        unknown.says("it is not known whether it does");
        assert!(source.is_in_state("postmigrate"));
        assert_eq!(source.steps().last().unwrap(), "unknown");
        assert!(source.resolve().contains("  unknown: the destination was told"));
        assert!(source.resolve().contains("the destination could not be asked: the journal does not tell"));
        for (domain, says) in [
            ("web 7 16 1 -b---- 0.1", "  at the destination: it runs there; ours must not"),
            (
                "web--incoming 7 16 1 --p--- 0.0",
                "  here: the destination's copy has not heard that it may run",
            ),
            ("other 7 16 1 -b---- 0.1", "  here: it is not at the destination"),
        ] {
            let uuid =
                if domain.starts_with("other") { "11111111-2222-3333-4444-555555555555" } else { UUID };
            let told = source.resolve_among(&format!("{domain} {uuid} - -\n"));
            assert!(told.contains(says), "{told}");
        }
        assert!(source.is_in_state("postmigrate"), "nobody knows, so nothing runs");

        // Had the sender been killed a moment before "go", its journal would end with `ready`.
        source.forget(3);
        assert!(source.resolve().contains("here: QEMU is in state running"));
        source.goes_on();
    }
}

#[test]
fn the_end_of_hyperferry_before_go_gives_the_guest_back() {
    let _alone = alone();
    for (qemu, kernel) in pairs() {
        let source = Source::start(&qemu, &kernel, CMDLINE, &[]);
        for signal in ["-INT", "-TERM", "-KILL"] {
            for complete in [false, true] {
                // It never says that it has the guest, which stands still by then, or is still being sent.
                let words = played(source.folder.path(), move |mut to, mut from| {
                    from.write_all(BANNER).unwrap();
                    if complete {
                        take_the_guest(&mut to);
                    } else {
                        to.read_exact(&mut [0; 10_000]).unwrap();
                    }
                    from.write_all(b"domain received,").unwrap();
                    let _ = to.read_to_end(&mut Vec::new());
                });
                let mut command = source.send(&["--progress", "plain"], &words);
                let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
                wait_for("the pages", || source.file("journal").exists() && source.steps().len() == 2);
                if complete {
                    // The monitor has one client at a time, so the guest tells: its last beat is old.
                    let quiet = || {
                        let before = source.beats().len();
                        thread::sleep(Duration::from_secs(3));
                        source.beats().len() == before
                    };
                    wait_for("silence", quiet);
                }
                kill(signal, child.id());
                let ended = end(child);
                if signal != "-KILL" {
                    ended.expect(5).says("the guest goes on here");
                }
                if !loses_writes(&qemu) {
                    source.goes_on();
                }
                let resolved = source.resolve();
                assert!(resolved.contains("here: QEMU is in state running"), "{resolved}");
                source.goes_on();
                assert_eq!(source.steps().last().unwrap(), "failed");
            }
        }
    }
}
