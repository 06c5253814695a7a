//! `hyperferry land`: captured guests go on where they stopped, and nothing is left behind when they must not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{command, patch, pipe, plain, qemus, slim, start_of, text};
use hyperferry_testkit::{Fixture, fixtures, lab, witness};
use serde_json::Value;

/// Beats that a landed guest must come to.
const BEATS: usize = 20;
/// How long that may take under emulation on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(180);
/// The captures are from another machine.
const ALLOWED: &str = "tsc-frequency";

/// One guest at a time: the others' emulation would take the time that a guest's timers are checked against.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> impl Drop {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes of this host whose command line has this word.
fn processes_with(word: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.contains(word) && line.contains("-incoming")).then_some(line)
    });
    lines.collect()
}

/// QEMU is gone: one that was killed may take a moment.
fn assert_gone(word: &str) {
    let began = Instant::now();
    while let Some(line) = processes_with(word).first() {
        assert!(began.elapsed() < Duration::from_secs(10), "still there: {line}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool, child: &mut Child) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        assert!(child.try_wait().unwrap().is_none(), "hyperferry ended before {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The same for something that must be seen when it happens.
fn wait_often(what: &str, mut done: impl FnMut() -> bool, child: &mut Child) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        assert!(child.try_wait().unwrap().is_none(), "hyperferry ended before {what}");
    }
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Lands a fixture; what the guest then printed is what it printed before, gone on, but for the checks that are named.
fn land(fixture: &Fixture, qemu: &Path) {
    land_from(&fixture.path(), fixture, qemu, &[]);
}

/// The same of a file that was made of a fixture, with more arguments.
fn land_from(stream: &Path, fixture: &Fixture, qemu: &Path, more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (serial, disk) = (folder.path().join("serial"), folder.path().join("disk"));
    fs::write(&disk, lab::disk()).unwrap();
    let disk = format!("hda={}", text(&disk));
    let mut arguments =
        vec!["land", text(stream), "--qemu", text(qemu), "--accel", "tcg", "--map-disk", &disk];
    arguments.extend(["--serial", text(&serial), "--allow", ALLOWED]);
    arguments.extend(more);
    let known = witness::known_after_a_move(&fixture.name);
    arguments.extend(known.allow.iter().flat_map(|name| ["--allow", *name]));
    let mut command = command(&arguments);
    let errors = fs::File::create(folder.path().join("stderr")).unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
    let beats = || witness::beats(&fs::read_to_string(&serial).unwrap_or_default()).len();
    wait_for("20 beats", || beats() >= BEATS, &mut child);
    interrupt(&child);
    let status = child.wait().unwrap();
    let said = fs::read_to_string(folder.path().join("stderr")).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("ended by SIGINT"), "{said}");
    let after = fs::read_to_string(&serial).unwrap();
    assert_gone(text(&serial));
    let place = format!("{} in {}", fixture.name, qemu.display());
    known.judge(&fixture.origin.serial, &after).unwrap_or_else(|why| panic!("{place}: {why}\n{said}"));
}

#[test]
fn every_captured_guest_goes_on() {
    let _alone = alone();
    for qemu in qemus() {
        for fixture in fixtures("xen").unwrap() {
            land(&fixture, &qemu);
        }
    }
}

/// From one version of QEMU to the other, and from KVM to emulation, by way of a checkpoint.
#[test]
fn every_guest_of_a_qemu_goes_on_in_the_other() {
    let _alone = alone();
    let [old, new] = ["7.2", "10.0"].map(hyperferry_testkit::tools::qemu);
    let (Ok(old), Ok(new)) = (old, new) else {
        println!("SKIPPED: this needs both versions of QEMU; `cargo xtask qemu`");
        return;
    };
    for fixture in fixtures("qemu").unwrap() {
        // KVM's captures differ from emulation's in how a CPU is told, not in devices.
        if fixture.name.contains("kvm") && !fixture.name.ends_with("2vcpu") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("checkpoint");
        common::run(&["convert", text(&fixture.path()), text(&checkpoint), "--to", "model"]).expect(0);
        if fixture.name.starts_with("qemu/7.2") {
            land_from(&checkpoint, &fixture, &new, &[]);
        } else {
            // The old one does not have the new one's machine.
            land_from(&checkpoint, &fixture, &old, &["--machine", "pc-i440fx-7.2"]);
        }
    }
}

/// A Linux guest that Xen saved: 256 MB, too large to lie in the tree. Where the capture is at hand it must go on as well.
#[test]
fn a_captured_linux_goes_on() {
    let _alone = alone();
    let captures = std::env::var_os("HYPERFERRY_CAPTURES")
        .map_or_else(|| hyperferry_testkit::checkout().join("../shared/captures"), PathBuf::from);
    let linux = fs::read_dir(&captures).into_iter().flatten().flatten().map(|entry| entry.path());
    let Some(stream) = linux.into_iter().find(|path| text(path).ends_with(".save.zst")) else {
        eprintln!(
            "skipped: no *.save.zst in {}; HYPERFERRY_CAPTURES names a directory of them",
            captures.display()
        );
        return;
    };
    for qemu in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let serial = folder.path().join("serial");
        let arguments =
            ["land", text(&stream), "--qemu", text(&qemu), "--accel", "tcg", "--serial", text(&serial)];
        // It takes its time from the HPET, which is what the refusal is about; its memory and registers are what counts here.
        let mut command = command(&[&arguments[..], &["--allow", ALLOWED, "--allow", "hpet"]].concat());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let beats = || witness::beats(&fs::read_to_string(&serial).unwrap_or_default());
        wait_for("20 beats", || beats().len() > BEATS, &mut child);
        interrupt(&child);
        child.wait().unwrap();
        for pair in beats().windows(2) {
            let [before, after] = pair else { continue };
            assert_eq!((after.beat, after.bad), (before.beat + 1, 0), "{after:?}");
            // The witness adds half to a floating-point number each beat, and a ten-millionth of it.
            let (was, is) = (before.number("fx").unwrap(), after.number("fx").unwrap());
            assert!(
                (is - was * 1.000_000_1 - 0.5).abs() < 1e-5,
                "the accumulator jumped: {before:?} {after:?}"
            );
        }
    }
}

/// Twenty seconds of the guest's clocks against this host's, and against each other.
#[test]
fn clocks_run_at_the_rate_that_the_guest_knows() {
    let _alone = alone();
    for qemu in qemus().into_iter().take(1) {
        let folder = tempfile::tempdir().unwrap();
        let serial = folder.path().join("serial");
        let stream = Fixture::named("xen/witness-1vcpu").unwrap().path();
        let arguments =
            ["land", text(&stream), "--qemu", text(&qemu), "--accel", "tcg", "--serial", text(&serial)];
        let mut command = command(&[&arguments[..], &["--allow", ALLOWED]].concat());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Each beat as its line arrives, with the host's time.
        let mut arrived: Vec<(Instant, witness::Beat)> = Vec::new();
        let long_enough = |arrived: &[(Instant, witness::Beat)]| {
            arrived.len() > 1 && arrived[1].0.elapsed() > Duration::from_secs(20)
        };
        let arrive = || {
            let beats = witness::beats(&fs::read_to_string(&serial).unwrap_or_default());
            let known = arrived.len();
            arrived.extend(beats.into_iter().skip(known).map(|beat| (Instant::now(), beat)));
            std::thread::sleep(Duration::from_millis(1));
            long_enough(&arrived)
        };
        wait_often("20 seconds of beats", arrive, &mut child);
        interrupt(&child);
        child.wait().unwrap();
        // The first line may have been printed before we looked.
        let ((began, first), (ended, last)) = (&arrived[1], &arrived[arrived.len() - 1]);
        let seconds = (*ended - *began).as_secs_f64();
        let counted = |name| last.number(name).unwrap() - first.number(name).unwrap();
        let pm = counted("pm") / 3_579_545.0 / seconds;
        let pit = counted("pit_irqs") / 100.0 / seconds;
        // The witness has measured its TSC against the PM timer when it started, on Xen.
        let tsc = 1.0 + last.number("ppm_tsc").unwrap() / 1e6;
        eprintln!(
            "of the guest's seconds in {seconds:.1} of ours: PM timer {pm:.4}, PIT {pit:.4}; TSC of the PM timer's {tsc:.4}"
        );
        // An interrupt of the PIT that comes while the last one still waits is lost, which a busy machine's emulation brings about.
        for (clock, rate, least) in [("PM timer", pm, 0.995), ("PIT", pit, 0.95)] {
            assert!((least..1.005).contains(&rate), "the guest's {clock} runs at {rate:.4} of its rate");
        }
    }
}

#[test]
fn the_document_says_how_it_went() {
    let _alone = alone();
    for qemu in qemus() {
        let stream = Fixture::named("xen/witness-1vcpu").unwrap().path();
        let arguments =
            ["land", text(&stream), "--qemu", text(&qemu), "--accel", "tcg", "--seconds", "1", "--json"];
        let run = common::run(&[&arguments[..], &["--allow", ALLOWED]].concat()).expect(0);
        let json: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!((&json["schema"], &json["vcpus"]), (&"hyperferry-land".into(), &1.into()));
        assert!(json["machine"].as_str().unwrap().starts_with("pc-i440fx-"));
        assert!(json["outcome"].as_str().unwrap().contains("--seconds"));
    }
}

#[test]
fn nothing_is_left_of_a_guest_that_must_not_run() {
    let _alone = alone();
    for qemu in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let serial = folder.path().join("serial");
        let stream = slim(&plain());
        // The clock's rate comes last in a stream: QEMU has been started and filled by then.
        let khz = start_of(&stream, "X86_TSC_INFO") + 12;
        let slow = patch(&stream, khz, &100_000_u32.to_le_bytes());
        let arguments = ["land", "-", "--qemu", text(&qemu), "--accel", "tcg", "--serial", text(&serial)];
        pipe(&arguments, &slow).expect(4).says("refused [tsc-frequency]: ");
        assert_gone(text(&serial));
        pipe(&arguments, &stream[..stream.len() - 8]).expect(3).says("@0x");
        assert_gone(text(&serial));
        assert_eq!(fs::read_to_string(&serial).unwrap_or_default(), "", "the guest has not run");
    }
}

#[test]
fn a_signal_before_the_guest_runs_changes_nothing() {
    let _alone = alone();
    for qemu in qemus().into_iter().take(1) {
        let folder = tempfile::tempdir().unwrap();
        let serial = folder.path().join("serial");
        let stream = slim(&plain());
        let arguments = ["land", "-", "--qemu", text(&qemu), "--accel", "tcg", "--serial", text(&serial)];
        let mut child = command(&arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // A sender that stops in the middle, as a dead network would.
        let mut pipe = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut pipe, &stream[..start_of(&stream, "X86_TSC_INFO")]).unwrap();
        wait_for("QEMU", || !processes_with(text(&serial)).is_empty(), &mut child);
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        drop(pipe);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("stopped by SIGINT"), "{said}");
        assert_gone(text(&serial));
    }
}

#[test]
fn a_guest_may_live_on_without_us() {
    let _alone = alone();
    for qemu in qemus().into_iter().take(1) {
        let stream = Fixture::named("xen/witness-1vcpu").unwrap().path();
        let arguments =
            ["land", text(&stream), "--qemu", text(&qemu), "--accel", "tcg", "--detach", "--json"];
        let run = common::run(&[&arguments[..], &["--allow", ALLOWED]].concat()).expect(0);
        let json: Value = serde_json::from_str(&run.stdout).unwrap();
        let pid = json["pid"].as_u64().unwrap().to_string();
        let ended = Command::new("kill").arg(&pid).status().unwrap();
        assert!(ended.success(), "process {pid} was there");
    }
}

#[test]
fn options_that_are_ours_are_a_usage_error() {
    let _alone = alone();
    for qemu in qemus().into_iter().take(1) {
        let arguments = ["land", "-", "--qemu", text(&qemu), "--accel", "tcg", "--", "-incoming", "tcp:0:1"];
        pipe(&arguments, &slim(&plain())).expect(2).says("-incoming");
    }
}
