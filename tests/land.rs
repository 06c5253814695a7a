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
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{command, patch, pipe, plain, qemus, slim, start_of, text};
use hyperferry_testkit::{Fixture, witness};
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

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn land(fixture: &Fixture, qemu: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let serial = folder.path().join("serial");
    let stream = fixture.path();
    let arguments =
        ["land", text(&stream), "--qemu", text(qemu), "--accel", "tcg", "--serial", text(&serial)];
    let mut command = command(&[&arguments[..], &["--allow", ALLOWED]].concat());
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
    go_on(&fixture.origin.serial, &after).unwrap_or_else(|why| panic!("{place}: {why}\n{said}"));
}

/// What the witness may find changed: Xen counts the local APIC's timer at 100 MHz, QEMU at 1 GHz (docs, "time"), and
/// a Xen that runs under emulation itself has lost CR2 before it could save it.
const KNOWN: [&str; 3] = ["lapic_initial", "lapic_current_in_range", "cr2"];

/// The beats go on where they stopped, one by one, and no check fails that is not known to.
fn go_on(before: &str, after: &str) -> Result<(), String> {
    let failed = after.lines().filter(|line| line.starts_with("BAD "));
    if let Some(line) =
        failed.clone().find(|line| !KNOWN.iter().any(|name| line.contains(&format!(" what={name} "))))
    {
        return Err(line.to_owned());
    }
    let beats = |text: &str| witness::beats(text).iter().map(|beat| beat.beat).collect::<Vec<_>>();
    let (last, beats) = (beats(before).last().copied().unwrap_or(0), beats(after));
    let first = beats.first().copied().unwrap_or(0);
    // The beat that was under way is printed on one side or on neither.
    if !(last..=last + 2).contains(&first) {
        return Err(format!("beat {last} was followed by beat {first}"));
    }
    match beats.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        Some(pair) => Err(format!("beat {} was followed by beat {}", pair[0], pair[1])),
        None => Ok(()),
    }
}

#[test]
fn captured_guests_go_on() {
    let _alone = alone();
    for qemu in qemus() {
        for name in ["xen/witness-1vcpu", "xen/witness-2vcpu"] {
            land(&Fixture::named(name).unwrap(), &qemu);
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
