//! The guests that move.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result};

use crate::lab::{
    Host, MAKE_DISK,
    network::{self, GUEST_ADDRESS},
};

/// The bridge of the Xen host, and the other name that it has on the KVM host.
pub(super) const BRIDGES: [&str; 2] = ["lab0", "lab1"];
/// The guest's disk on the Xen host, and where it is on the KVM host.
pub(super) const DISKS: [&str; 2] = ["/root/live/fixture.disk", "/root/live/disks/fixture.disk"];
const MAC: &str = "00:16:3e:00:4d:02";

/// A guest that prints beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The bare-metal witness on two vCPUs, 16 MB.
    Witness,
    /// Linux, 256 MB, which rewrites and verifies memory all the time.
    Linux,
}

impl Guest {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Witness, Self::Linux];

    /// What it is called on the hosts.
    pub(super) fn name(self) -> String {
        format!("live-{self}")
    }

    /// What `xl create` wants; with a disk and a network card if it is to have them.
    pub(super) fn configuration(self, serial: &str, devices: bool) -> String {
        let address = if devices { format!(" witness.ip={GUEST_ADDRESS}/24") } else { String::new() };
        let own = match self {
            Self::Witness => "memory=16\nvcpus=2\nkernel=\"/guest/witness.bzimage\"\n\
                 cmdline=\"avx=off mem=1 skip=pat,cr2 lapic=off\"\n"
                .to_owned(),
            // Without AVX: Xen does not hear of it in this emulation (tests/lab/README.md).
            Self::Linux => format!(
                "memory=256\nvcpus=1\nkernel=\"/guest/vmlinuz\"\nramdisk=\"/guest/initrd.gz\"\ncpuid=\"host,avx=0\"\n\
                 cmdline=\"console=ttyS0 nokaslr nopv quiet clocksource=tsc tsc=reliable hpet=disable{address}\"\n"
            ),
        };
        let devices = if devices {
            let ([disk, _], [bridge, _]) = (DISKS, BRIDGES);
            format!(
                "disk=[\"{disk},raw,hda,rw\"]\nvif=[\"type=ioemu,model=e1000,mac={MAC},bridge={bridge}\"]\n"
            )
        } else {
            String::new()
        };
        configuration(&self.name(), serial, &format!("{own}{devices}nographic=1\nvga=\"none\"\n"))
    }

    /// Whether it can be reached through its network card from that host.
    pub(super) fn answers_pings(self, host: Host) -> bool {
        self != Self::Linux || host.run(&format!("ping -c 3 -W 10 {GUEST_ADDRESS}")).is_ok()
    }
}

/// A domain without PV drivers that stays to be looked at when it dies; `own` is its kernel and its devices.
pub(in crate::lab) fn configuration(name: &str, serial: &str, own: &str) -> String {
    format!(
        "name=\"{name}\"\ntype=\"hvm\"\n{own}serial=\"file:{serial}\"\nxen_platform_pci=0\n\
         on_crash=\"preserve\"\non_reboot=\"preserve\"\non_poweroff=\"preserve\"\n"
    )
}

/// Gives both hosts a bridge, and both the disk.
pub(super) fn provide_devices() -> Result<()> {
    for ((host, bridge), disk) in Host::PAIR.into_iter().zip(BRIDGES).zip(DISKS) {
        network::provide_bridge(host, bridge)?;
        host.run(&format!("mkdir -p $(dirname {disk}); cd $(dirname {disk})\n{MAKE_DISK}"))?;
    }
    network::provide_bridge_helper()
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Witness => "witness",
            Self::Linux => "linux",
        })
    }
}

impl FromStr for Guest {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|guest| guest.to_string() == name);
        found.context("the guests are witness and linux")
    }
}
