//! The hosts around a move: what they need, and what is cleaned up in them.

use std::{
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    checkout,
    lab::{
        Host,
        network::{MACHINE, give_key},
    },
};

/// Shell: processes of a program that have a path of ours in their command line.
const OURS: &str = "ours() {
    for process in /proc/[0-9]*; do
        case $(readlink $process/exe) in
        *$1*) tr '\\0' ' ' <$process/cmdline | grep -q /root/live/ && basename $process ;;
        esac
    done
}
";

/// The journal's file system outlives the host, which forgets everything else when it stops. One that was booted before it got
/// that disk does without.
const KEEP_JOURNAL: &str = "mkdir -p /root/live/journal; [ -b /dev/vdb ] || exit 0
    mountpoint -q /root/live/journal || mount /dev/vdb /root/live/journal 2>/dev/null ||
    { mkfs.ext4 -q /dev/vdb && mount /dev/vdb /root/live/journal; }";

/// As docs/live-move.md advises: a half-made copy whose network has gone is to end.
const ALIVE: &str = "grep -q '^ClientAliveInterval' /etc/ssh/sshd_config ||
    { echo 'ClientAliveInterval 5' >>/etc/ssh/sshd_config; kill -HUP $(cat /run/sshd.pid); }";

/// Puts `hyperferry` and `cut` on both hosts, and shows the Xen host the way to the other.
pub(super) fn equip(binaries: &[Vec<u8>; 2]) -> Result<()> {
    for host in Host::PAIR {
        for (bytes, name) in binaries.iter().zip(["hyperferry", "cut"]) {
            install(host, bytes, name)?;
        }
    }
    Host::Kvm.run(KEEP_JOURNAL)?;
    Host::Kvm.run(ALIVE)?;
    Host::PAIR.into_iter().try_for_each(give_key)?;
    let config = format!(
        "Host kvm\n HostName {MACHINE}\n Port {}\nHost gateway\n HostName 127.0.0.1\nHost *\n User root\n \
         IdentityFile /root/.ssh/id_lab\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel QUIET\n \
         ServerAliveInterval 5\n",
        Host::Kvm.port()
    );
    Host::Xen.send(config.as_bytes(), "/root/.ssh/config")?;
    Host::Xen.run("chmod 600 /root/.ssh/config").map(drop)
}

/// Puts a program where a host keeps ours.
pub(in crate::lab) fn install(host: Host, bytes: &[u8], name: &str) -> Result<()> {
    host.run("mkdir -p /root/live/journal")?;
    host.install(bytes, &format!("/root/live/{name}"))
}

/// Ends what a guest of that name may have left on the Xen host.
pub(in crate::lab) fn clean_xen(name: &str) {
    let script =
        format!("for name in {name} {name}--incoming {name}--migratedaway; do xl destroy $name; done; true");
    drop(Host::Xen.ssh(&script).stderr(Stdio::null()).stdout(Stdio::null()).status());
}

/// Ends what any guest may have left on the KVM host.
pub(in crate::lab) fn clean_kvm() {
    let script = "cd /root/live; for process in $(ours hyperferry) $(ours qemu); do kill -9 $process; done
                  rm -rf journal/* *.serial";
    drop(Host::Kvm.ssh(&format!("{OURS}{script}")).stderr(Stdio::null()).stdout(Stdio::null()).status());
}

/// Whether no QEMU of ours is left on the KVM host.
pub(in crate::lab) fn no_qemu_left() -> Result<bool> {
    Ok(Host::Kvm.run(&format!("{OURS}ours qemu; true"))?.is_empty())
}

/// Asks every second until it has come; false if it has not come within that time.
pub(in crate::lab) fn until(patience: Duration, mut come: impl FnMut() -> Result<bool>) -> Result<bool> {
    let began = Instant::now();
    while !come()? {
        if began.elapsed() > patience {
            return Ok(false);
        }
        sleep(Duration::from_secs(1));
    }
    Ok(true)
}

/// Whether the last guest died with the hypervisor's own code segment in its registers: nothing but a fault of the
/// emulation puts it there.
pub(in crate::lab) fn lost_in_emulation() -> Result<bool> {
    const SCRIPT: &str = "xl dmesg -c | grep -A 6 'Triple fault' | grep -q 'RIP: *e008:' && echo lost; true";
    Ok(Host::Xen.run(SCRIPT)?.contains("lost"))
}

/// Boots a host that was lost.
pub(in crate::lab) fn boot_again(host: Host) -> Result<()> {
    xtask(&["up", &host.to_string()])
}

/// Boots the KVM host anew, without a feature of its processor if one is named.
pub(super) fn boot_kvm(without: Option<&str>) -> Result<()> {
    xtask(&["down", "kvm"])?;
    match without {
        Some(feature) => xtask(&["up", "kvm", "--without", feature]),
        None => boot_again(Host::Kvm),
    }
}

fn xtask(words: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["xtask", "lab"]).args(words).current_dir(checkout()).status()?;
    ensure!(status.success(), "failed: cargo xtask lab {}", words.join(" "));
    Ok(())
}
