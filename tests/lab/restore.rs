//! Guests go on in a real Xen: those that go home by way of the model, and those that were born under QEMU.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use hyperferry_testkit::lab::{Host, MAKE_DISK, await_beats};
use hyperferry_testkit::{Fixture, fixtures, tools, witness};

/// How many beats a guest has to go on for.
const BEATS: usize = 20;
/// How often a guest is restored: now and then the emulated processor loses one (tests/lab/README.md), and then another.
const ATTEMPTS: usize = 3;

/// Converts a fixture on this machine: to the model, and from there to Xen.
fn convert(fixture: &Fixture, allow: &[&str]) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let [save, model, xen] = ["save", "model", "xen"].map(|name| folder.path().join(name));
    std::fs::write(&save, fixture.stream()?)?;
    for (from, to, format) in [(&save, &model, "model"), (&model, &xen, "xen")] {
        let mut command = Command::new(tools::hyperferry()?);
        command.arg("convert").args([from, to]).args(["--to", format, "--progress", "none"]);
        command.args(["--map-disk", "hda=/root/fixture.disk"]);
        command.args(allow.iter().flat_map(|name| ["--allow", name]));
        let output = command.output().context("cannot start hyperferry")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "to {format}: {}\n{said}", output.status);
    }
    Ok(zstd::encode_all(std::fs::read(&xen)?.as_slice(), 1)?)
}

/// Restores a stream in the host and gives what the guest prints to `serial`: a file, or the line that Xen gave it.
fn restore(packed: &[u8], guest: &str, serial: &str) -> Result<String> {
    Host::Xen.send(packed, "/root/fixture.zst")?;
    Host::Xen.run(&format!(
        "xl destroy {guest} 2>/dev/null
         cd /root
         zstd -q -d -f fixture.zst -o fixture.stream
         rm -f {SERIAL}
         xl dmesg -c >/dev/null
         {MAKE_DISK}
         ip link add xenbr0 type bridge 2>/dev/null
         xl restore -p fixture.stream >fixture.out 2>&1 || {{
           cat fixture.out; tail -5 /var/log/xen/qemu-dm-{guest}.log; exit 1; }}
         {serial}
         xl unpause {guest}
         {}
         xl destroy {guest}
         cat {SERIAL}",
        await_beats(SERIAL, BEATS, "xl dmesg | grep -A 3 'Triple fault'")
    ))
}

/// Where the lab's Xen guests print to.
const SERIAL: &str = "/var/log/xen/fixture.serial";
/// The same for a guest whose configuration came from no Xen: its line is a terminal.
const FROM_TERMINAL: &str = "tty=$(xenstore-read /local/domain/$(xl domid guest)/serial/0/tty)
         stty -F $tty raw -echo
         cat $tty >/var/log/xen/fixture.serial &";

fn all(
    format: &str,
    known: impl Fn(&str) -> witness::Known,
    restore: impl Fn(&[u8]) -> Result<String>,
) -> Result<()> {
    let mut failures = Vec::new();
    for fixture in fixtures(format)? {
        let known = known(&fixture.name);
        let attempt = || {
            let serial = restore(&convert(&fixture, known.allow)?)?;
            ensure!(witness::beats(&serial).len() >= BEATS, "not {BEATS} beats:\n{serial}");
            known.judge(&fixture.origin.serial, &serial).map_err(|why| anyhow::anyhow!("{why}\n{serial}"))
        };
        let mut done = attempt();
        for _ in 1..ATTEMPTS {
            if let Err(error) = &done {
                eprintln!("{}, again: {error:#}", fixture.name);
                done = attempt();
            }
        }
        match done {
            Ok(()) => eprintln!("{}: goes on", fixture.name),
            Err(error) => {
                eprintln!("{}: {error:#}", fixture.name);
                failures.push(fixture.name);
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join(", ")) }
}

#[test]
fn every_xen_fixture_goes_home_by_way_of_the_model() -> Result<()> {
    all("xen", witness::known_at_home, |packed| restore(packed, "fixture", ""))
}

#[test]
fn every_guest_of_qemu_goes_on_in_xen() -> Result<()> {
    all("qemu", witness::known_on_xen, |packed| restore(packed, "guest", FROM_TERMINAL))
}
