//! One running lab host: a virtual machine with a throw-away view of its disk image, reached by ssh.
//!
//! What the emulation has to look like was found by trying. It must be QEMU 7.2: 10.0.2 reports every read of a control
//! register in a nested guest as a read of CR0. `monitor` makes Xen idle with MWAIT, a fault here; `smap` crashes a
//! PV dom0; exits for `rdtscp` are misreported and kill the guest; `cmpxchg16b` now and then leaves garbage in RFLAGS,
//! and Linux uses it all over its allocator where the processor offers it.

use crate::qemu;
use crate::sh::{Run, command, step, tail};
use anyhow::{Context, Result, bail};
use hyperferry_testkit::lab::Host;
use std::fs;
use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

const CPU: &str = "EPYC,+svm,+npt,-monitor,-smap,-rdtscp,-cx16";
/// A boot takes half a minute on an idle machine; this is for a busy one.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Bytes of the KVM host's second disk, which keeps what is written to it: what survives a loss of power.
const KEPT: u64 = 64 << 20;

/// Boots it in the background, without these features of its processor; tells whether it was down until now.
pub(super) fn start(host: Host, without: &[String]) -> Result<bool> {
    if pid(host).is_some() {
        return Ok(false);
    }
    step(format!("booting the {host} host (about 1 min)"));
    let port = free_port(host)?;
    // The image is only read; what the host writes goes to a file that ends with it.
    let program = qemu::dir("7.2").join("qemu-system-x86_64");
    // Linux with KVM rewrites its own code when VMs come and go; emulated on two threads it now and then runs what it
    // has just replaced, and dies of an int3 in __schedule. One thread cannot. With two processors on it KVM's log of
    // dirty pages still loses some (tests/lab/README.md).
    let (accelerator, processors) = match host {
        Host::Kvm => ("tcg,thread=single", "1"),
        Host::Xen | Host::Xen414 | Host::Xen420 => ("tcg,thread=multi", "2"),
    };
    let cpu: String =
        std::iter::once(CPU.to_owned()).chain(without.iter().map(|name| format!(",-{name}"))).collect();
    let mut qemu = command(program, ["-accel", accelerator, "-cpu", &cpu, "-machine", "q35"]);
    qemu.args(["-smp", processors, "-no-reboot", "-daemonize"]);
    qemu.args(["-display", "none", "-pidfile", "pid", "-monitor", "unix:monitor,server,nowait"]);
    qemu.args(["-serial", "file:serial.log"]);
    qemu.args(["-drive", "file=disk.img,if=virtio,format=raw,snapshot=on,cache=unsafe"]);
    qemu.args(["-nic", &format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22")]);
    match host {
        Host::Xen | Host::Xen414 | Host::Xen420 => {
            let xen = "console=com1 com1=115200,8n1 dom0_mem=1024M dom0_max_vcpus=2 loglvl=all guest_loglvl=all \
                           noreboot cpuidle=0 spec-ctrl=eager-fpu";
            let dom0 = "kernel console=hvc0 root=/dev/vda rw init=/lab-init net.ifnames=0 quiet,initrd";
            qemu.args(["-m", "3072", "-kernel", "xen.elf", "-append", xen, "-initrd", dom0]);
        }
        Host::Kvm => {
            let linux = "console=ttyS0 root=/dev/vda rw init=/lab-init net.ifnames=0 quiet nokaslr";
            qemu.args(["-m", "3072", "-kernel", "kernel", "-append", linux, "-initrd", "initrd"]);
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(host.dir().join("kept.img"))?
                .set_len(KEPT)?;
            qemu.args(["-drive", "file=kept.img,if=virtio,format=raw"]);
        }
    }
    let dir = host.dir();
    qemu.current_dir(&dir).env("TMPDIR", &dir).quiet()?;
    fs::write(dir.join("port"), port.to_string())?;
    Ok(true)
}

/// Waits until it answers.
pub(super) fn wait(host: Host) -> Result<()> {
    let start = Instant::now();
    while !host.ssh("true").succeeds() {
        if pid(host).is_none() || start.elapsed() > BOOT_LIMIT {
            let log = fs::read(host.dir().join("serial.log")).unwrap_or_default();
            bail!("the {host} host does not come up:\n{}", tail(&String::from_utf8_lossy(&log), 20));
        }
        sleep(Duration::from_secs(2));
    }
    step(status(host));
    Ok(())
}

/// Stops it if it runs.
pub(crate) fn down(host: Host) -> Result<()> {
    if let Some(process) = pid(host) {
        step(format!("stopping the {host} host"));
        command("kill", [process.to_string()]).quiet()?;
        while pid(host).is_some() {
            sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// One line: whether it runs and how to reach it.
pub(super) fn status(host: Host) -> String {
    match pid(host) {
        Some(pid) => format!("{host} host: process {pid}, {}", ssh_line(host)),
        None => format!("{host} host: down"),
    }
}

/// One line on what a running host is, for a fixture's origin.
pub(crate) fn describe(host: Host) -> Result<String> {
    let kernel = host.ssh("uname -r").read()?;
    Ok(format!("the lab's {host} host: Linux {} on emulated -cpu {CPU}", kernel.trim()))
}

fn ssh_line(host: Host) -> String {
    let ssh = host.ssh("");
    let words: Vec<_> = ssh.get_args().map(|word| word.to_string_lossy()).collect();
    format!("ssh {}", words.join(" "))
}

/// The process of the running host. A process id from before a reboot may be anyone's: only a QEMU that forwards
/// the host's port counts.
fn pid(host: Host) -> Option<u32> {
    let pid = fs::read_to_string(host.dir().join("pid")).ok()?.trim().parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let hostfwd = format!("127.0.0.1:{}-:22", host.port());
    line.windows(hostfwd.len()).any(|window| window == hostfwd.as_bytes()).then_some(pid)
}

fn free_port(host: Host) -> Result<u16> {
    let listener =
        TcpListener::bind(("127.0.0.1", host.usual_port())).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    let address = listener.and_then(|listener| listener.local_addr()).context("no free port on 127.0.0.1")?;
    Ok(address.port())
}
