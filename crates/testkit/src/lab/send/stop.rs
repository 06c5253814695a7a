//! A guest and its stops: where it is born, where it is, and what it says there.

use std::{ops::Range, process::Stdio};

use anyhow::{Result, bail};

use super::{BEATS, Devices, PATIENCE, Plan, STARTS};
use crate::lab::{
    Host,
    console::{Console, Seen},
    live::{self, Guest},
};

/// The disk of a guest that has one, on either host.
pub(super) const DISK: &str = "/root/live/disk";
/// The platform shim beside `hyperferry`, which finds it there.
pub(super) const SHIM: &str = "libhyperferry_platform_shim.so";
/// The monitor of a QEMU that nobody but us has started.
const SOURCE: &str = "/root/live/source.qmp";
/// The network card, where there is one.
const MAC: &str = "00:16:3e:5d:00:01";

/// A guest's serial port on a host.
#[derive(Debug)]
pub(super) struct Stop {
    host: Host,
    serial: String,
    pub(super) console: Console,
}

impl Stop {
    fn new(host: Host, guest: &str, number: usize) -> Result<Self> {
        let folder = if host == Host::Xen { "/var/log/xen" } else { "/root/live" };
        let serial = format!("{folder}/{guest}.{number}.serial");
        host.run(&format!("rm -f {serial}"))?;
        Ok(Self { host, console: Console::watch(host, &serial)?, serial })
    }

    /// The file that its lines go to.
    pub(super) fn serial(&self) -> &str {
        &self.serial
    }
}

/// A guest that beats.
#[derive(Debug)]
pub(super) struct Running {
    name: String,
    number: usize,
    monitor: String,
    /// The stop that it has just left.
    left: Option<Stop>,
    here: Stop,
}

impl Running {
    /// What both hosts call it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub(super) fn host(&self) -> Host {
        self.here.host
    }

    /// Where the QEMU listens that has it on the KVM host.
    pub(super) fn monitor(&self) -> &str {
        &self.monitor
    }

    /// What it says where it is.
    pub(super) fn console(&self) -> &Console {
        &self.here.console
    }

    /// What it said at the stop that it left, and since then.
    pub(super) fn seen(&self) -> Seen {
        let here = self.here.console.seen();
        self.left.as_ref().map_or_else(|| here.clone(), |left| left.console.seen().then(here.clone()))
    }

    /// When nobody can tell its clock: between the two stops if it has moved, else while the command ran.
    pub(super) fn pause(&self, migration: &Range<f64>) -> Range<f64> {
        let left = self.left.as_ref().and_then(|left| Some(left.console.seen().beats().last()?.0));
        let here = self.here.console.seen().beats().first().map(|beat| beat.0);
        left.zip(here).map_or_else(|| migration.clone(), |(left, here)| left..here)
    }

    /// A place for it on another host.
    pub(super) fn next_stop(&mut self, host: Host) -> Result<Stop> {
        self.left = None;
        self.number += 1;
        Stop::new(host, &self.name, self.number)
    }

    /// It is there now, in a QEMU with this monitor if there is one.
    pub(super) fn arrived(&mut self, there: Stop, monitor: Option<String>) {
        self.left = Some(std::mem::replace(&mut self.here, there));
        self.monitor = monitor.unwrap_or_default();
    }

    /// Whether it beats on; forgets what it has said, and what was written down of its moves.
    pub(super) fn waits_again(&self) -> bool {
        self.here.console.forget();
        self.here.console.waits_for_beats(BEATS, PATIENCE)
            && Host::Kvm.run("rm -rf /root/live/journal/*").is_ok()
    }
}

/// Starts a guest and waits for its beats.
pub(super) fn start(plan: &Plan) -> Result<Running> {
    let name = format!("send-{}", plan.guest);
    for _ in 0..STARTS {
        clean();
        let monitor = if plan.trip { "" } else { SOURCE }.to_owned();
        let here = Stop::new(if plan.trip { Host::Xen } else { Host::Kvm }, &name, 0)?;
        if plan.trip {
            Host::Xen.send(on_xen(plan, &name, &here.serial).as_bytes(), &format!("/root/{name}.cfg"))?;
            Host::Xen.run(&format!("xl dmesg -c >/dev/null; xl create -q /root/{name}.cfg"))?;
        } else {
            Host::Kvm.run(&on_kvm(plan, &name, &here.serial))?;
        }
        if here.console.waits_for_beats(BEATS, PATIENCE) {
            return Ok(Running { name, number: 0, monitor, left: None, here });
        }
        eprintln!("{name} did not come to its beats: {:?}", here.console.seen().lines.last());
    }
    bail!("{name} did not start in {STARTS} attempts");
}

/// Ends every guest on either host: with two of them the emulation's faults are frequent.
pub(super) fn clean() {
    let every = "for guest in $(xl list | awk 'NR > 2 { print $2 }'); do xl destroy $guest; done; true";
    drop(Host::Xen.ssh(every).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
    live::clean_kvm();
}

/// Kernel, initial ramdisk and command line of a guest.
fn kernel(plan: &Plan) -> [String; 3] {
    match plan.guest {
        Guest::Witness => {
            let clocks = if plan.clocks { "lapic=periodic hpet=count" } else { "lapic=off" };
            // KVM puts off writes to port 0x70, and may lose the last one when it sends a guest. QEMU's firmware shadows
            // itself, and the chipset's registers for that are the destination's own.
            // Xen shows the APIC ids that it gives (docs/what-moves.md).
            let skip =
                if plan.trip { "pat,cr2,cmos_index" } else { "pat,cr2,bios_page,cmos_index,cpuid_apic_id" };
            let line = format!("avx=off mem=1 skip={skip} {clocks}");
            ["/guest/witness.bzimage".to_owned(), String::new(), line]
        }
        Guest::Linux => {
            let clocks = if plan.clocks { "" } else { " hpet=disable nolapic_timer" };
            let line = format!("console=ttyS0 nokaslr nopv quiet clocksource=tsc tsc=reliable{clocks}");
            ["/guest/vmlinuz".to_owned(), "/guest/initrd.gz".to_owned(), line]
        }
    }
}

fn memory(plan: &Plan) -> u32 {
    match plan.guest {
        Guest::Witness => 16,
        Guest::Linux => 256,
    }
}

/// Its configuration on Xen.
fn on_xen(plan: &Plan, name: &str, serial: &str) -> String {
    let [kernel, ramdisk, line] = kernel(plan);
    let card = |model: &str| {
        format!(
            "disk=[\"format=raw,backendtype=qdisk,vdev=hda,access=rw,target={DISK}\"]\n\
             vif=[\"type=ioemu,model={model},mac={MAC},bridge=xenbr0,script=/bin/true\"]\n"
        )
    };
    // Video memory is a part of a domain's.
    let (video, devices) = match plan.devices {
        Devices::Bare => (0, "vga=\"none\"\n".to_owned()),
        Devices::Std => (16, format!("vga=\"stdvga\"\nvideoram=16\n{}", card("e1000"))),
        Devices::Cirrus => (8, format!("vga=\"cirrus\"\nvideoram=8\n{}", card("rtl8139"))),
    };
    let (memory, vcpus) = (memory(plan) + video, plan.vcpus);
    // Without AVX: Xen does not hear of it in this emulation (tests/lab/README.md).
    let cpu = "cpuid=\"host,avx=0\"\n";
    let ramdisk = if ramdisk.is_empty() { ramdisk } else { format!("ramdisk=\"{ramdisk}\"\n") };
    let own = format!(
        "memory={memory}\nvcpus={vcpus}\nkernel=\"{kernel}\"\n{ramdisk}cmdline=\"{line}\"\n{cpu}nographic=1\n{devices}"
    );
    live::configuration(name, serial, &own)
}

/// The command that starts its QEMU on the KVM host.
fn on_kvm(plan: &Plan, name: &str, serial: &str) -> String {
    let [kernel, ramdisk, line] = kernel(plan);
    let ramdisk = if ramdisk.is_empty() { ramdisk } else { format!("-initrd {ramdisk}") };
    let card = |model: &str| {
        format!(
            "-netdev hubport,id=net0,hubid=0 -device {model},netdev=net0,mac={MAC} \
             -drive file={DISK},format=raw,if=ide"
        )
    };
    let devices = match plan.devices {
        Devices::Bare => String::new(),
        Devices::Std => format!("-vga std {}", card("e1000")),
        Devices::Cirrus => format!("-vga cirrus {}", card("rtl8139")),
    };
    let (qemu, memory, vcpus) = (plan.qemu, memory(plan), plan.vcpus);
    // A CPU that shows no more than the Xen host's guests see.
    format!(
        "qemu-{qemu} -name {name} -uuid $(cat /proc/sys/kernel/random/uuid) -machine pc -accel kvm \
         -cpu qemu64,-svm -m {memory} -smp {vcpus} -nodefaults -display none -daemonize -serial file:{serial} \
         -qmp unix:{SOURCE},server=on,wait=off -kernel {kernel} {ramdisk} -append '{line}' {devices} \
         >/root/live/source.log 2>&1 || {{ cat /root/live/source.log; exit 1; }}"
    )
}
