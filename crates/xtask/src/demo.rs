//! `cargo xtask demo`: a guest that real Xen has saved goes on under QEMU, and says so itself.

use crate::sh::{Run, command};
use crate::{apt, ci, paths, qemu};
use anyhow::{Context, Result, bail, ensure};
use hyperferry_testkit::{Fixture, witness};
use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The capture that is shown.
const FIXTURE: &str = "xen/witness-1vcpu";
/// The QEMU that takes it.
const QEMU: &str = "10.0";
/// How much of `inspect` fits on a screen.
const SCREEN: usize = 20;
/// The capture was made on another machine: its time-stamp counter need not run at this one's rate.
const ALLOWED: &str = "tsc-frequency";
/// The witness checks what is left of a shot of the local APIC's timer: Xen counts it at 100 MHz, QEMU at 1 GHz, so the
/// count under way is another one (`lapic-timer` in docs/what-moves.md). Everything else must be as it was.
const EXPECTED: [&str; 2] = ["lapic_initial", "lapic_current_in_range"];

/// Builds, converts, lands, and follows the guest for `seconds`.
pub(crate) fn run(accelerator: &str, seconds: u64) -> Result<()> {
    let began = Instant::now();
    apt::install(&["gcc", "libc6-dev"])?;
    qemu::provide(false)?;
    let hyperferry = Hyperferry(ci::release_binary()?);

    let fixture = Fixture::named(FIXTURE)?;
    let folder = tempfile::tempdir()?;
    let stream = format!("fixtures/{FIXTURE}/stream.zst");
    let program = qemu::dir(QEMU).join("qemu-system-x86_64");
    let program = program.to_str().context("the path of QEMU is not text")?;
    let destination = ["--qemu", program, "--accel", accelerator, "--allow", ALLOWED];

    introduce(&fixture)?;
    title("What the stream holds")?;
    inspect(&hyperferry, &stream)?;
    title("The same VM as a QEMU stream")?;
    let converted = folder.path().join("guest.qemu");
    let out = converted.to_str().context("the temporary folder's path is not text")?;
    let arguments = [&["convert", &stream, out, "--to", "qemu"], &destination[..]].concat();
    hyperferry.told(&arguments)?.run()?;
    say(format!("{} bytes of a QEMU migration stream", fs::metadata(&converted)?.len()))?;

    title("The guest goes on")?;
    let serial = folder.path().join("serial");
    let (file, time) =
        (serial.to_str().context("the temporary folder's path is not text")?, seconds.to_string());
    let arguments = [&["land", &stream, "--serial", file, "--seconds", &time], &destination[..]].concat();
    let after = follow(hyperferry.told(&arguments)?.spawn()?, &serial)?;

    title("Summary")?;
    judge(&fixture, &after)?;
    say(format!("all of it took {} s", began.elapsed().as_secs()))
}

fn introduce(fixture: &Fixture) -> Result<()> {
    let origin = &fixture.origin;
    title("A guest that Xen has saved")?;
    say(format!("fixture     {}: {}", fixture.name, origin.what))?;
    say(format!("hypervisor  {}", origin.hypervisor))?;
    say(format!("captured    {}: {}", origin.captured, origin.command))?;
    say("It checks its processor and its devices a few times a second. The last that it said on Xen:")?;
    say(last_beat(&origin.serial).context("the fixture does not tell the guest's last beat")?)
}

/// The stream's elements, without their fields.
fn inspect(hyperferry: &Hyperferry, stream: &str) -> Result<()> {
    let dump = hyperferry.told(&["inspect", stream])?.read()?;
    let mut elements = dump.lines().filter(|line| !line.starts_with("  "));
    for line in elements.by_ref().take(SCREEN) {
        say(line)?;
    }
    say(format!("… and {} more elements; each has its fields below it", elements.count()))
}

/// Shows what the guest prints until `land` ends; gives all of it back.
fn follow(mut land: Child, serial: &Path) -> Result<String> {
    let (mut shown, mut beats) = (0, 0);
    loop {
        let ended = land.try_wait()?;
        let text = String::from_utf8_lossy(&fs::read(serial).unwrap_or_default()).into_owned();
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text.get(shown..complete).unwrap_or_default().lines() {
            beats += usize::from(line.starts_with("WITNESS "));
            if is_worth_showing(line, beats) {
                say(format!("guest | {}", line.trim_end()))?;
            }
        }
        shown = complete;
        match ended {
            Some(status) if status.success() => return Ok(text),
            Some(status) => bail!("{status}: hyperferry land"),
            None => sleep(Duration::from_millis(100)),
        }
    }
}

/// The first beats, then one of ten, and everything that is neither a beat nor a note (what the machine says of itself).
fn is_worth_showing(line: &str, beats: usize) -> bool {
    match line.split(' ').next() {
        Some("WITNESS") => beats <= 4 || beats.is_multiple_of(10),
        Some("NOTE") => false,
        _ => true,
    }
}

/// The guest has gone on where it stopped, and found nothing damaged.
fn judge(fixture: &Fixture, after: &str) -> Result<()> {
    let before = &fixture.origin.serial;
    let (stopped, beats) = (witness::beats(before), witness::beats(after));
    let (Some(stopped), Some(first), Some(last)) = (stopped.last(), beats.first(), beats.last()) else {
        bail!("the guest has not gone on: no beat after the move");
    };
    say(format!("last beat on Xen     {:4}, bad={}", stopped.beat, stopped.bad))?;
    say(format!("first beat on QEMU   {:4}, bad={}", first.beat, first.bad))?;
    say(format!("last beat seen       {:4}, bad={}", last.beat, last.bad))?;
    // The beat that was under way is printed on one side, on the other, or was cut in two.
    ensure!(
        (stopped.beat..=stopped.beat + 2).contains(&first.beat),
        "the guest has not gone on where it stopped"
    );
    let steps = last.beat - first.beat + 1;
    ensure!(beats.len() as u64 == steps, "{} beats were heard of {steps}", beats.len());
    ensure!(steps > 1, "the guest has stopped after one beat");
    let failed: Vec<&str> = after.lines().filter(|line| line.starts_with("BAD ")).collect();
    let expected = |line: &&&str| EXPECTED.iter().any(|name| line.contains(&format!(" what={name} ")));
    let damage = failed.iter().find(|line| !expected(line));
    ensure!(damage.is_none(), "the guest found damage: {}", damage.copied().unwrap_or_default());
    // The first beat may find the shot under way changed; nothing is found after it.
    ensure!(
        last.bad == first.bad && first.bad - stopped.bad == failed.len() as u64,
        "the guest found damage: bad={} after the move",
        last.bad
    );
    for line in &failed {
        say(format!("the LAPIC timer's clock is another one here: {line}"))?;
    }
    say(format!("it went on: {steps} beats in order, {} of its checks failed", failed.len()))
}

fn last_beat(serial: &str) -> Option<&str> {
    serial.lines().rfind(|line| line.starts_with("WITNESS ") && line.contains(" rate_pit="))
}

/// The program that was just built.
struct Hyperferry(PathBuf);

impl Hyperferry {
    /// A command, shown as a user would type it.
    fn told(&self, arguments: &[&str]) -> Result<Command> {
        say(format!("$ hyperferry {}", arguments.join(" ")))?;
        let mut run = command(&self.0, arguments);
        run.current_dir(paths::checkout()).stdin(Stdio::null());
        Ok(run)
    }
}

fn title(what: &str) -> Result<()> {
    say(format!("\n== {what}"))
}

fn say(line: impl AsRef<str>) -> Result<()> {
    Ok(writeln!(stdout(), "{}", line.as_ref())?)
}
