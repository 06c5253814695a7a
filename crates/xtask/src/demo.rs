//! `cargo xtask demo`: a guest that real Xen has saved goes on under QEMU, and says so itself.

use crate::sh::{Run, command};
use crate::{apt, ci, paths, qemu};
use anyhow::{Context, Error, Result, bail};
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
    let lines =
        [("last on Xen", stopped.last()), ("first on QEMU", beats.first()), ("last seen", beats.last())];
    for (when, beat) in lines.into_iter().filter_map(|(when, beat)| Some((when, beat?))) {
        say(format!("{when:14} beat={} bad={}", beat.beat, beat.bad))?;
    }
    witness::continues(before, after, witness::unseen_beats(FIXTURE))
        .map_err(Error::msg)
        .context("the guest has not gone on unharmed")?;
    say(format!("{} beats, none missing, and not one check failed", beats.len()))
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
