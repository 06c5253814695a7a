//! `hyperferry convert --to xen`: a guest that came from Xen, and was saved by a QEMU, goes home with nothing lost.

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
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use common::{Run, names, patch, plain, qemus, run, slim, start_of, text, with_config};
use hyperferry_testkit::{Fixture, lab, said::Said, witness};
use sender::{Cleanup, Sender, wait_for};
use serde_json::{Value, json};

/// Every difference between the stream that came and the one that goes home, the guest having stood still in between: how
/// the places of its values begin, and why they are others.
const DIFFERENCES: [(&str, &str); 20] = [
    ("X86_TSC_INFO.nsec", "the guest's time has gone on"),
    ("HVM_CONTEXT.RTC[*].cmos_data", "the clock goes on with the host's"),
    ("HVM_CONTEXT.CPU[*].fpu_regs", "no QEMU keeps the selectors beside 32-bit pointers of the FPU"),
    ("HVM_CONTEXT.CPU_XSAVE[*].save_area", "the same area once more"),
    ("HVM_CONTEXT.CPU[*].pending_event", "emulation gives an interrupt in flight back to its controller"),
    ("HVM_CONTEXT.LAPIC_REGS[*].IRR", "the controller that has it back"),
    ("HVM_CONTEXT.LAPIC_REGS[*].ISR", "the same"),
    ("HVM_CONTEXT.MTRR[*].msr_mtrr_var", "Xen has written variable range 0 into all eight places"),
    ("HVM_CONTEXT.PIT[*].channels[*].mode", "a channel that nobody has programmed: 0xff in Xen, 3 in QEMU"),
    ("EMULATOR_CONTEXT.timer", "the virtual clock of the device model: nothing of the guest under Xen"),
    ("EMULATOR_CONTEXT.mc146818rtc 0", "the clock's memory where Xen keeps the time itself, and its timers"),
    (
        "EMULATOR_CONTEXT.0000:00:00.0/I440FX 0.parent_obj.config[*][0x5",
        "BIOS shadowing, as QEMU's machine has it",
    ),
    (
        "EMULATOR_CONTEXT.0000:00:01.0/PIIX3 0.dev.config[*][0x6",
        "interrupt links by QEMU's wires; Xen's are PCI_LINK",
    ),
    (
        "EMULATOR_CONTEXT.0000:00:01.1/ide 0.bmdma[*].migration_retry",
        "of the device model's own last migration",
    ),
    (
        "EMULATOR_CONTEXT.0000:00:01.3/piix4_pm 0.ar.pm1.evt",
        "Xen's own are in PMTIMER, and a guest sees those",
    ),
    ("EMULATOR_CONTEXT.0000:00:01.3/piix4_pm 0.ar.tmr", "the same"),
    ("EMULATOR_CONTEXT.0000:00:02.0", "labels, which count on here; the device model left some out"),
    ("EMULATOR_CONTEXT.0000:00:03.0/e1000 0.section_id", "the same"),
    ("EMULATOR_CONTEXT.0000:00:03.0/rtl8139 0.TCTR", "the card's timer has gone on"),
    ("EMULATOR_CONTEXT.0000:00:03.0/rtl8139 0.", "its label, and a flag of the device model's start"),
];

/// What Xen alone knows: none of it may ever differ, whatever the guest has done here.
const XENS_OWN: [&str; 6] = [
    "xl config",
    "X86_CPUID_POLICY",
    "X86_MSR_POLICY",
    "HVM_PARAMS",
    "HVM_CONTEXT.HEADER",
    "HVM_CONTEXT.VMCE_VCPU",
];

/// The page of the ring to xenstore, which is another one after each move.
const STORE_PFN: u64 = 0xf_effc;

/// What has to be allowed: the captures are from another machine, and some are about clocks.
const ALLOWED: [&str; 2] = ["--allow", "tsc-frequency,lapic-timer,hpet"];

/// A guest that came from Xen, and stands still in a QEMU here.
struct Guest {
    folder: tempfile::TempDir,
    _cleanup: Cleanup,
}

impl Guest {
    fn receive(qemu: &Path, stream: &[u8], more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [journal, disk, serial] = ["journal", "disk", "serial"].map(|name| folder.path().join(name));
        fs::write(&disk, lab::disk()).unwrap();
        let disk = format!("hda={}", text(&disk));
        let mut command = common::command(&[
            "receive",
            "--qemu",
            text(qemu),
            "--accel",
            "tcg",
            "--journal",
            text(&journal),
        ]);
        command.args(ALLOWED).args(["--map-disk", &disk, "--serial", text(&serial)]).args(more);
        let mut sender = Sender::of(&mut command, folder.path());
        sender.sends(stream);
        sender.gives_away();
        sender.ends(0);
        Self { _cleanup: Cleanup(journal), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file of the journal with this extension.
    fn journal(&self, extension: &str) -> PathBuf {
        let journal = self.path("journal");
        let names = names(&journal);
        journal.join(names.iter().find(|name| name.ends_with(extension)).unwrap())
    }

    /// QEMU saves it, as its administrator would, and says whose it is.
    fn save(&self, name: &str) -> PathBuf {
        let saved = self.path(name);
        let mut monitor = BufReader::new(UnixStream::connect(self.journal(".qmp")).unwrap());
        let mut ask = |command: &str, arguments: Value| {
            let question = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": 7 }));
            monitor.get_mut().write_all(question.as_bytes()).unwrap();
            loop {
                let mut line = String::new();
                assert_ne!(monitor.read_line(&mut line).unwrap(), 0, "QEMU ended");
                let answer: Value = serde_json::from_str(&line).unwrap();
                if answer["id"] == 7 {
                    assert!(answer.get("error").is_none(), "{command}: {answer}");
                    return answer["return"].clone();
                }
            }
        };
        ask("qmp_capabilities", json!({}));
        let capability = json!({ "capability": "validate-uuid", "state": true });
        ask("migrate-set-capabilities", json!({ "capabilities": [capability] }));
        ask("migrate", json!({ "uri": format!("exec:cat > {}", text(&saved)) }));
        wait_for("a saved guest", || match ask("query-migrate", json!({}))["status"].as_str() {
            Some("completed") => true,
            Some("failed") => panic!("QEMU has not saved it"),
            _ => false,
        });
        saved
    }

    /// What goes home, with what was said about it.
    fn convert(&self, saved: &Path, more: &[&str]) -> (Vec<u8>, Run) {
        let (out, journal) = (self.path("home"), self.path("journal"));
        let words = ["convert", text(saved), text(&out), "--to", "xen"];
        let journal = if more.contains(&"--journal") { vec![] } else { vec!["--journal", text(&journal)] };
        let said = run(&[&words[..], &ALLOWED, &journal, more].concat()).expect(0);
        // A strict judge accepts it.
        run(&["verify", text(&out)]).expect(0);
        let bytes = fs::read(&out).unwrap();
        fs::remove_file(out).unwrap();
        (bytes, said)
    }
}

/// The stream as QEMU writes it without `validate-uuid`: `configuration/uuid` is gone (formats/qemu/stream.md).
fn without_uuid(stream: &[u8]) -> Vec<u8> {
    let name = b"configuration/uuid";
    let at = stream.windows(name.len()).position(|bytes| bytes == name).unwrap();
    // Its mark and length; its version and the UUID.
    [&stream[..at - 2], &stream[at + name.len() + 4 + 16..]].concat()
}

/// The plain guest with policies that no template has: another name of the processor, another PLATFORM_INFO.
fn with_policies_of_its_own() -> Vec<u8> {
    let stream = plain();
    // Records: type, length; then leaves of 24 bytes, and MSRs of 16.
    let leaves = start_of(&stream, "X86_CPUID_POLICY") + 8;
    let name =
        stream[leaves..].chunks(24).position(|leaf| leaf[..4] == 0x8000_0002_u32.to_le_bytes()).unwrap();
    let stream = patch(&stream, leaves + name * 24 + 8, b"Home");
    let msr = start_of(&stream, "X86_MSR_POLICY") + 8;
    patch(&stream, msr + 8, &0x8000_0000_u64.to_le_bytes())
}

/// Numbers of vCPUs and the like stand for each other; offsets stay.
fn any_number(place: &str) -> String {
    let mut parts = place.split('[');
    let mut general = parts.next().unwrap().to_owned();
    for part in parts {
        let (index, rest) = part.split_once(']').unwrap();
        let index = if index.parse::<u32>().is_ok() { "*" } else { index };
        general += &format!("[{index}]{rest}");
    }
    general
}

/// A QEMU that does not survive the migration of a guest with a window for Xen's ACPI tables (`send::facts`).
fn aborts_with_a_window(qemu: &Path) -> bool {
    !text(qemu).contains("7.2")
}

/// The QEMUs that can save a guest from Xen under emulation.
fn savers() -> Vec<PathBuf> {
    qemus().into_iter().filter(|qemu| !aborts_with_a_window(qemu)).collect()
}

/// Memory is the same, but for what no QEMU has: the ring to xenstore, and the device model's copies of ROMs, which Xen
/// keeps behind RAM and video memory.
#[track_caller]
fn assert_same_memory(name: &str, before: &Said, after: &Said) {
    let config: Value = serde_json::from_str(&before.values["xl config"]).unwrap();
    // Video memory is part of it.
    let behind = config["b_info"]["max_memkb"].as_u64().unwrap() / 4;
    let frames: BTreeSet<_> = before.frames.keys().chain(after.frames.keys()).copied().collect();
    for frame in frames {
        let (was, is) = (before.frames.get(&frame), after.frames.get(&frame));
        let rom = (behind..behind + 0x80).contains(&frame) && is.is_none();
        assert!(was == is || rom || frame == STORE_PFN, "{name}: page {frame:#x}: {was:x?} became {is:x?}");
    }
}

#[test]
fn a_guest_that_stood_still_goes_home_as_it_came_but_for_what_is_listed() {
    let mut met = BTreeSet::new();
    let savers = savers();
    for qemu in &savers {
        for name in ["1vcpu", "4vcpu", "avx", "stdvga-e1000", "cirrus-rtl8139"] {
            let stream = Fixture::named(&format!("xen/witness-{name}")).unwrap().stream().unwrap();
            let guest = Guest::receive(qemu, &stream, &["--paused"]);
            let saved = guest.save("saved");
            let (home, said) = guest.convert(&saved, &[]);
            let said = said.says("note [home]: the guest goes home with").says(text(&guest.journal(".home")));
            assert!(!said.stderr.contains("warning [home]"), "{}", said.stderr);
            let (before, after) = (Said::of(&stream).unwrap(), Said::of(&home).unwrap());
            assert_same_memory(name, &before, &after);
            for (place, was, is) in before.differences(&after) {
                let general = any_number(place);
                match DIFFERENCES.iter().find(|(listed, _)| general.starts_with(listed)) {
                    Some((listed, _)) => met.insert(*listed),
                    None => panic!("{name}: {place}: {was:?} became {is:?}"),
                };
            }
        }
    }
    // The list is exact: nothing stands in it that no guest shows.
    if !savers.is_empty() {
        assert_eq!(met, DIFFERENCES.iter().map(|(place, _)| *place).collect());
    }
}

#[track_caller]
fn assert_xens_own_is_the_same(stream: &[u8], home: &[u8]) {
    let (before, after) = (Said::of(stream).unwrap(), Said::of(home).unwrap());
    for own in XENS_OWN {
        assert!(before.values.keys().any(|place| place.starts_with(own)), "{own} is in no stream");
    }
    for (place, was, is) in before.differences(&after) {
        assert!(!XENS_OWN.iter().any(|own| place.starts_with(own)), "{place}: {was:?} became {is:?}");
    }
    assert_eq!(before.values["records"], after.values["records"]);
}

#[test]
fn a_guest_that_has_run_here_takes_home_what_xen_knows_of_it() {
    for qemu in savers() {
        let stream = with_policies_of_its_own();
        let guest = Guest::receive(&qemu, &stream, &[]);
        let beats = || witness::beats(&fs::read_to_string(guest.path("serial")).unwrap_or_default()).len();
        wait_for("beats", || beats() > 2);
        let (home, _) = guest.convert(&guest.save("saved"), &[]);
        assert_xens_own_is_the_same(&stream, &home);
    }
}

#[test]
fn a_stream_without_a_uuid_wants_to_be_told_whose_it_is() {
    for qemu in savers() {
        let stream = with_policies_of_its_own();
        let guest = Guest::receive(&qemu, &stream, &["--paused"]);
        let named = guest.save("named");
        let saved = guest.path("saved");
        fs::write(&saved, without_uuid(&fs::read(&named).unwrap())).unwrap();
        let kept = guest.journal(".home");
        // Nothing is taken that only fits; it is offered.
        let (made, said) = guest.convert(&saved, &[]);
        let offer = format!("{} is of fixture (", text(&kept));
        said.says("warning [home]: the guest came from Xen, and its stream has no UUID").says(&offer);
        let (own, made) = (Said::of(&stream).unwrap(), Said::of(&made).unwrap());
        assert_ne!(own.values["xl config"], made.values["xl config"]);

        let (home, said) = guest.convert(&saved, &["--home", text(&kept)]);
        said.says("note [home]: the guest goes home with");
        assert_xens_own_is_the_same(&stream, &home);
        // The save file that it came in says the same, and so does the journal once the stream has a UUID.
        let came = guest.path("came.save");
        fs::write(&came, &stream).unwrap();
        let nowhere = guest.path("nowhere");
        assert!(guest.convert(&saved, &["--home", text(&came), "--journal", text(&nowhere)]).0 == home);
        assert!(!nowhere.exists(), "nothing is made");
        assert!(guest.convert(&named, &[]).0 == home);
        // By way of a checkpoint too.
        let model = guest.path("model");
        run(&["convert", text(&named), text(&model), "--to", "model"]).expect(0);
        assert!(guest.convert(&model, &[]).0 == home);
    }
}

/// What goes home of a stream that was made one of QEMU's meanwhile; the save file that it came in is named.
fn there_and_home(stream: &[u8], qemu: &Path) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [came, there, home] = ["came", "there", "home"].map(|name| folder.path().join(name));
    fs::write(&came, stream).unwrap();
    let to_qemu = ["--to", "qemu", "--qemu", text(qemu), "--accel", "tcg"];
    run(&[&["convert", text(&came), text(&there)], &to_qemu[..], &ALLOWED].concat()).expect(0);
    run(&["convert", text(&there), text(&home), "--to", "xen", "--home", text(&came)]).expect(0);
    fs::read(home).unwrap()
}

/// The newer QEMU under emulation takes such a guest in and cannot save it: what it would be sent stands for what it saves.
#[test]
fn a_stream_in_the_dialect_of_each_qemu_goes_home() {
    for qemu in qemus() {
        let stream = with_policies_of_its_own();
        let home = there_and_home(&stream, &qemu);
        assert_xens_own_is_the_same(&stream, &home);
        let (before, after) = (Said::of(&stream).unwrap(), Said::of(&home).unwrap());
        assert_same_memory(text(&qemu), &before, &after);
    }
}

/// A stream tells how much RAM there is and not where it ends below 4 GiB; the firmware was told, on Xen as well.
#[test]
fn memory_of_a_guest_from_xen_lies_where_it_did() {
    const MIB: u32 = 3700;
    const PAGE: u64 = 0xe_7000;
    let large = with_config(&slim(&plain()), |json| json["b_info"]["max_memkb"] = (MIB << 10).into());
    // Its one page lies where QEMU's pc with as much memory has none unless told so.
    let large = patch(&large, start_of(&large, "PAGE_DATA") + 16, &PAGE.to_le_bytes());
    // CMOS registers 0x32, the century, to 0x38; 0x34 is the end in units of 64 KiB above 16 MiB.
    let century = [0x20, 0, 0, 0, 0, 0, 0x10];
    let at = large.windows(century.len()).rposition(|bytes| bytes == century).unwrap();
    let told = u16::try_from((MIB - 16) * 16).unwrap();
    let large = patch(&large, at + 2, &told.to_le_bytes());
    for qemu in qemus().into_iter().take(1) {
        let (before, after) = (Said::of(&large).unwrap(), Said::of(&there_and_home(&large, &qemu)).unwrap());
        let ram: Vec<_> =
            after.frames.keys().filter(|frame| !(0xe_8000..0x10_0000).contains(*frame)).collect();
        assert_eq!(ram, [&PAGE], "in {}", qemu.display());
        assert_eq!(before.frames[&PAGE], after.frames[&PAGE]);
    }
}

#[test]
fn what_was_kept_and_cannot_be_used_says_why() {
    for qemu in savers() {
        let stream = plain();
        let guest = Guest::receive(&qemu, &stream, &["--paused"]);
        let saved = guest.save("saved");
        let kept = guest.journal(".home");
        let out = guest.path("home");
        let refused = |from: &Path, home: &Path, code: i32, words: &str| {
            let words_of = ["convert", text(from), text(&out), "--to", "xen", "--home", text(home)];
            run(&words_of).expect(code).says(&format!("{}: ", text(home))).says(words);
            assert!(!out.exists(), "nothing is written");
        };
        let other = Fixture::named("xen/witness-2vcpu").unwrap().path();
        refused(&saved, &other, 4, "of another guest: its UUID is ");
        let born_here = Fixture::named("qemu/10.0-tcg-bare").unwrap().path();
        refused(&born_here, &kept, 2, "not wanted: the guest has not come from Xen");
        refused(&other, &kept, 2, "not wanted: the guest's own stream says");
        refused(&saved, &born_here, 4, "nothing in it is from Xen");
        let document = fs::read_to_string(&kept).unwrap();
        let changed = |text: &str| fs::write(&kept, text).unwrap();
        changed(&document.replace(r#""version":1"#, r#""version":9"#));
        refused(&saved, &kept, 4, "found hyperferry-home version 9, wanted hyperferry-home version 1");
        changed(&document.replace("schema", "scheme"));
        refused(&saved, &kept, 4, "found no schema and version");
        changed(&document[..document.len() - 9]);
        refused(&saved, &kept, 3, "damaged, or no file of hyperferry's: EOF");
        // Found by itself, it says so too: this guest's is not passed over in silence.
        let journal = guest.path("journal");
        let by_itself = ["convert", text(&saved), text(&out), "--to", "xen", "--journal", text(&journal)];
        run(&by_itself).expect(3).says("damaged");
        assert!(!out.exists());
    }
}
