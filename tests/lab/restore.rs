//! Guests go on in a real Xen: those that go home by way of the model, and those that were born under QEMU.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use hyperferry_testkit::lab::{Host, MAKE_DISK};
use hyperferry_testkit::{Fixture, fixtures, tools, witness};

/// How many beats a guest has to go on for.
const BEATS: usize = 20;

/// Converts a fixture on this machine: to the model, and from there to Xen.
fn convert(fixture: &Fixture, allow: &[&str]) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let [save, model, xen] = ["save", "model", "xen"].map(|name| folder.path().join(name));
    std::fs::write(&save, fixture.stream()?)?;
    for (from, to, format) in [(&save, &model, "model"), (&model, &xen, "xen")] {
        let mut command = Command::new(tools::hyperferry()?);
        command.arg("convert").args([from, to]).args(["--to", format, "--progress", "none"]);
        command.args(allow.iter().flat_map(|name| ["--allow", name]));
        let output = command.output().context("cannot start hyperferry")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "to {format}: {}\n{said}", output.status);
    }
    Ok(zstd::encode_all(std::fs::read(&xen)?.as_slice(), 1)?)
}

/// Restores a stream in the host, with a configuration of its own if there is one, and gives what the guest prints.
fn restore(packed: &[u8], config: Option<&str>) -> Result<String> {
    Host::Xen.send(packed, "/root/fixture.zst")?;
    let file = config.map_or("", |_| "fixture.cfg");
    let write = config.map_or_else(String::new, |text| format!("cat >{file} <<'END'\n{text}\nEND\n"));
    Host::Xen.run(&format!(
        "xl destroy fixture 2>/dev/null
         zstd -q -d -f /root/fixture.zst -o /root/fixture.stream
         rm -f /var/log/xen/fixture.serial
         cd /root
         {MAKE_DISK}
         {write}
         xl restore {file} /root/fixture.stream >/root/fixture.out 2>&1 || {{
           cat /root/fixture.out; tail -5 /var/log/xen/qemu-dm-fixture.log; exit 1; }}
         for i in $(seq 180); do
           [ $(grep -c '^WITNESS' /var/log/xen/fixture.serial) -ge {BEATS} ] && break
           sleep 1
         done
         xl destroy fixture
         cat /var/log/xen/fixture.serial"
    ))
}

/// A configuration for a guest whose stream has none that Xen would know.
fn config(fixture: &Fixture) -> String {
    let origin = &fixture.origin;
    let devices = if fixture.name.ends_with("-devices") {
        "vga=\"stdvga\"\nvif=[\"type=ioemu,model=e1000,mac=52:54:00:12:34:56,script=/bin/true\"]
disk=[\"/root/fixture.disk,raw,hda,rw\"]"
    } else {
        "vga=\"none\""
    };
    format!(
        "name=\"fixture\"\ntype=\"hvm\"\nmemory={}\nvcpus={}\nserial=\"file:/var/log/xen/fixture.serial\"
nographic=1\nxen_platform_pci=0\non_crash=\"preserve\"\n{devices}",
        origin.memory, origin.vcpus
    )
}

fn all(
    format: &str,
    wanted: impl Fn(&Fixture) -> bool,
    known: impl Fn(&str) -> witness::Known,
    config: impl Fn(&Fixture) -> Option<String>,
) -> Result<()> {
    let mut failures = Vec::new();
    for fixture in fixtures(format)?.into_iter().filter(wanted) {
        let known = known(&fixture.name);
        let done = convert(&fixture, known.allow)
            .and_then(|packed| restore(&packed, config(&fixture).as_deref()))
            .and_then(|serial| {
                let enough = witness::beats(&serial).len() >= BEATS;
                ensure!(enough, "not {BEATS} beats:\n{serial}");
                known.judge(&fixture.origin.serial, &serial).map_err(|why| anyhow::anyhow!("{why}\n{serial}"))
            });
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
    all("xen", |_| true, witness::known_at_home, |_| None)
}

#[test]
fn every_guest_of_qemu_goes_on_in_xen() -> Result<()> {
    all("qemu", |_| true, witness::known_on_xen, |fixture| Some(config(fixture)))
}
