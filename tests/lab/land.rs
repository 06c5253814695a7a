//! Guests that Xen saved go on under real KVM, in both QEMU versions.

use std::{path::PathBuf, sync::OnceLock};

use anyhow::{Context, Result, bail, ensure};
use hyperferry_testkit::lab::{Host, MAKE_DISK, await_beats};
use hyperferry_testkit::{Fixture, fixtures, tools, witness};

/// How many beats a guest has to go on for.
const BEATS: usize = 20;
/// The captures come from a Xen host whose clock was measured apart from the KVM host's.
const ALLOWED: &str = "--allow tsc-frequency";

/// Puts the command into the host, once.
fn installed() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let install = || -> Result<()> {
        let binary: PathBuf = tools::hyperferry()?;
        Host::Kvm.run("mkdir -p /root/land")?;
        Host::Kvm.install(&std::fs::read(binary)?, "/root/land/hyperferry")
    };
    DONE.get_or_init(|| install().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

/// Lands a stream in the host and lets `watch`, a shell script, see its serial line grow in the file `serial`.
fn land(fixture: &Fixture, version: &str, allow: &str, watch: &str) -> Result<String> {
    installed()?;
    let packed = std::fs::read(fixture.path()).context("no stream")?;
    Host::Kvm.send(&packed, "/root/land/fixture.zst")?;
    Host::Kvm.run(&format!(
        "cd /root/land; rm -f serial
         {MAKE_DISK}
         ./hyperferry land fixture.zst --qemu /usr/local/bin/qemu-{version} --accel kvm --serial serial \\
           --map-disk hda=/root/land/fixture.disk {ALLOWED} {allow} --progress none >said 2>&1 &
         for i in $(seq 60); do [ -s serial ] && break; kill -0 $! 2>/dev/null || break; sleep 1; done
         {watch}
         kill -INT $! 2>/dev/null; wait $! || cat said"
    ))
}

#[test]
fn every_xen_fixture_goes_on_under_kvm() -> Result<()> {
    let watch = format!("{}\ncat serial", await_beats("serial", BEATS, "! kill -0 $! 2>/dev/null"));
    let mut failures = Vec::new();
    for fixture in fixtures("xen")? {
        for version in ["7.2", "10.0"] {
            let known = witness::known_after_a_move(&fixture.name);
            let allow: String = known.allow.iter().map(|name| format!(" --allow {name}")).collect();
            let done = land(&fixture, version, &allow, &watch).and_then(|serial| {
                let enough = witness::beats(&serial).len() >= BEATS;
                ensure!(enough, "not {BEATS} beats:\n{serial}");
                known.judge(&fixture.origin.serial, &serial).map_err(|why| anyhow::anyhow!("{why}\n{serial}"))
            });
            let place = format!("{} in QEMU {version}", fixture.name);
            match done {
                Ok(()) => eprintln!("{place}: goes on"),
                Err(error) => {
                    eprintln!("{place}: {error:#}");
                    failures.push(place);
                }
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join(", ")) }
}

/// Twenty seconds of the guest's clocks against its host's.
#[test]
fn clocks_run_at_the_rate_that_the_guest_knows() -> Result<()> {
    // Each line with the host's time at which it came.
    let watch =
        "timeout 24 tail -n +1 -f serial | while read -r line; do echo \"at=$EPOCHREALTIME $line\"; done";
    let fixture = Fixture::named("xen/witness-1vcpu")?;
    let printed = land(&fixture, "7.2", "", watch)?;
    let lines: Vec<(f64, witness::Beat)> = printed
        .lines()
        .filter_map(|line| {
            let (time, line) = line.strip_prefix("at=")?.split_once(' ')?;
            Some((time.parse().ok()?, witness::beats(&format!("{line}\n")).pop()?))
        })
        .collect();
    // The first lines were there before anybody read.
    let (began, first) = lines.get(4).with_context(|| format!("too few beats:\n{printed}"))?;
    let (ended, last) = lines.last().context("no beats")?;
    let seconds = ended - began;
    ensure!(seconds > 15.0, "only {seconds:.1} s of beats:\n{printed}");
    let counted = |name: &str| -> Result<f64> {
        Ok(last.number(name).context("no such clock")? - first.number(name).context("no such clock")?)
    };
    let rates = [
        ("PM timer", counted("pm")? / 3_579_545.0 / seconds),
        ("PIT", counted("pit_irqs")? / 100.0 / seconds),
    ];
    for (clock, rate) in rates {
        eprintln!("in {seconds:.1} s the guest's {clock} ran at {rate:.4} of its rate");
        ensure!((rate - 1.0).abs() < 0.005, "the guest's {clock} runs at {rate:.4} of its rate");
    }
    let tsc = 1.0 + last.number("ppm_tsc").context("no TSC")? / 1e6;
    eprintln!("its TSC ran at {tsc:.4} of what it was against the PM timer on Xen");
    Ok(())
}
