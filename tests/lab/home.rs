//! Every fixture goes on where it came from: what is seen after a move is then the move's doing.

use anyhow::{Context, Result, bail};
use hyperferry_testkit::lab::{Host, MAKE_DISK, await_beats};
use hyperferry_testkit::{Fixture, fixtures, witness};

/// How many beats a guest has to go on for.
const BEATS: usize = 5;

#[test]
fn every_xen_fixture_goes_on_in_xen() -> Result<()> {
    let script = format!(
        "xl destroy fixture 2>/dev/null
         zstd -q -d -f /root/fixture.zst -o /root/fixture.stream
         rm -f /var/log/xen/fixture.serial
         cd /root
         {MAKE_DISK}
         xl restore /root/fixture.stream >/root/fixture.out 2>&1 || {{ cat /root/fixture.out; exit 1; }}
         {}
         xl destroy fixture
         cat /var/log/xen/fixture.serial",
        await_beats("/var/log/xen/fixture.serial", BEATS, "false")
    );
    // Those of the other senders belong to hosts that are not up.
    let ours = |fixture: &Fixture| fixture.origin.hypervisor.starts_with("Xen 4.17");
    all("xen", Host::Xen, ours, |_| script.clone())
}

#[test]
fn every_kvm_fixture_goes_on_in_kvm() -> Result<()> {
    let script = |fixture: &Fixture| {
        let version = if fixture.name.contains("/7.2-") { "7.2" } else { "10.0" };
        let command = fixture.origin.config.replacen("qemu-system-x86_64", &format!("qemu-{version}"), 1);
        format!(
            "mkdir -p /root/home; cd /root/home
             zstd -q -d -f /root/fixture.zst -o stream
             rm -f serial
             {MAKE_DISK}
             cp /guest/witness.bzimage .
             rm -f input; mkfifo input; exec 3<>input
             {command} -incoming 'exec:cat stream' <input >monitor 2>&1 &
             {}
             kill $! || cat monitor
             cat serial",
            await_beats("serial", BEATS, "! kill -0 $! 2>/dev/null")
        )
    };
    all("qemu", Host::Kvm, |fixture| fixture.name.contains("-kvm-"), script)
}

fn all(
    format: &str,
    host: Host,
    wanted: impl Fn(&Fixture) -> bool,
    script: impl Fn(&Fixture) -> String,
) -> Result<()> {
    let mut failures = Vec::new();
    for fixture in fixtures(format)?.into_iter().filter(wanted) {
        let done = goes_on(&fixture, host, &script(&fixture));
        eprintln!(
            "{}: {}",
            fixture.name,
            done.as_ref().map_or_else(|error| format!("{error:#}"), |()| "goes on".into())
        );
        if done.is_err() {
            failures.push(fixture.name);
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join(", ")) }
}

fn goes_on(fixture: &Fixture, host: Host, script: &str) -> Result<()> {
    let packed = std::fs::read(fixture.path()).context("no stream")?;
    host.send(&packed, "/root/fixture.zst")?;
    let serial = host.run(script)?;
    witness::continues(&fixture.origin.serial, &serial, witness::unseen_beats(&fixture.name))
        .map_err(|reason| anyhow::anyhow!("{reason}\n{serial}"))
}
