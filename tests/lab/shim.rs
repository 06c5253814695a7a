//! Guests that measured Xen's clocks keep them under real KVM, with the platform shim, as `xl migrate` would bring them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{
    Fixture,
    lab::{Host, await_beats},
    tools, witness,
};

/// How many beats a guest has to go on for.
const BEATS: usize = 20;

/// Takes a recorded guest in, gives the shim no word on the command line, and lets it beat: what both have printed.
fn receive(fixture: &Fixture, version: &str) -> Result<(String, String)> {
    let library: PathBuf = tools::platform_shim()?;
    Host::Kvm.run("rm -rf /root/shim; mkdir -p /root/shim")?;
    for (file, name) in [(tools::hyperferry()?, "hyperferry"), (library, "libhyperferry_platform_shim.so")] {
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        Host::Kvm.install(&bytes, &format!("/root/shim/{name}"))?;
    }
    Host::Kvm.send(&fs::read(fixture.path())?, "/root/shim/fixture.zst")?;
    let printed = Host::Kvm.run(&format!(
        "cd /root/shim
         {{ zstd -dc fixture.zst; printf 'domain is yours, you are cleared to unpause\\0'; }} |
           ./hyperferry receive --qemu /usr/local/bin/qemu-{version} --journal journal --serial serial \
             --allow tsc-frequency --progress none >answers 2>said || {{ cat said; exit 1; }}
         {}
         printf '{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"stop\"}}{{\"execute\":\"quit\"}}' |
           socat - unix-connect:$(ls journal/*.qmp) >/dev/null
         cat said journal/*.log journal/*.hpet.json 2>/dev/null; echo; echo SERIAL; cat serial",
        await_beats("serial", BEATS, "false")
    ))?;
    let (said, serial) = printed.split_once("SERIAL\n").context("no serial port")?;
    Ok((said.to_owned(), serial.to_owned()))
}

/// The middle of the values that each beat had.
fn median(serial: &str, name: &str) -> Result<f64> {
    let mut values: Vec<f64> = witness::beats(serial).iter().filter_map(|beat| beat.number(name)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().with_context(|| format!("no {name} in\n{serial}"))
}

fn goes_on(name: &str, version: &str) -> Result<(String, String)> {
    let fixture = Fixture::named(name)?;
    let (said, serial) = receive(&fixture, version)?;
    ensure!(said.contains("platform shim: on"), "nobody asked for it:\n{said}");
    ensure!(said.contains("apic-bus-ns=10"), "KVM did not take the rate:\n{said}");
    ensure!(witness::beats(&serial).len() >= BEATS, "not {BEATS} beats:\n{said}\n{serial}");
    witness::continues(&fixture.origin.serial, &serial, witness::unseen_beats(name))
        .map_err(|why| anyhow::anyhow!("{why}\n{said}\n{serial}"))?;
    Ok((said, serial))
}

#[test]
fn the_hpet_keeps_its_rate() -> Result<()> {
    for version in ["7.2", "10.0"] {
        let (said, serial) = goes_on("xen/witness-hpet", version)?;
        let off = median(&serial, "ppm_hpet")?;
        eprintln!("QEMU {version}: the HPET is {off} ppm off the PM timer");
        // QEMU's own would be 600000 ppm fast.
        ensure!(off.abs() < 5000.0, "{off} ppm\n{serial}");
        ensure!(said.contains("\"hpet\":{"), "QEMU stopped, and no state was written:\n{said}");
    }
    Ok(())
}

#[test]
fn a_periodic_local_apic_timer_keeps_its_count() -> Result<()> {
    for version in ["7.2", "10.0"] {
        // The witness checks the initial count in each beat.
        let (_, serial) = goes_on("xen/witness-lapic-periodic", version)?;
        eprintln!("QEMU {version}: {} of its ticks come", median(&serial, "rate_lapic")?);
    }
    Ok(())
}
