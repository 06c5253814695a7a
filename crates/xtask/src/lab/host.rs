//! One running lab host: a virtual machine with a throw-away view of its disk image, reached by ssh.
//!
//! What the emulation has to look like was found by trying. It must be QEMU 7.2: 10.0.2 reports every read of a control
//! register in a nested guest as a read of CR0. `monitor` makes Xen idle with MWAIT, a fault here; `smap` crashes a
//! PV dom0; exits for `rdtscp` are misreported and kill the guest.

use crate::sh::{Run, command, step, tail};
use crate::{paths, qemu};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::fmt;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const CPU: &str = "EPYC,+svm,+npt,-monitor,-smap,-rdtscp";
/// A boot takes half a minute on an idle machine; this is for a busy one.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// The hosts of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// Xen 4.17 with a Debian dom0.
    Xen,
    /// Linux 6.12 with KVM and both QEMU versions.
    Kvm,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Host::Xen => "xen",
            Host::Kvm => "kvm",
        })
    }
}

/// The key that opens both hosts.
pub(super) fn key() -> PathBuf {
    paths::lab().join("id_lab")
}

impl Host {
    /// Both.
    pub(crate) const ALL: [Host; 2] = [Host::Xen, Host::Kvm];

    /// Where its images and, while it runs, its files are.
    pub(super) fn dir(self) -> PathBuf {
        paths::lab().join(self.to_string())
    }

    /// Boots it in the background unless it runs.
    pub(super) fn start(self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        step(format!("booting the {self} host (about 1 min)"));
        let port = self.free_port()?;
        // The image is only read; what the host writes goes to a file that ends with it.
        let mut qemu = command(
            qemu::dir("7.2").join("qemu-system-x86_64"),
            [
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                CPU,
                "-machine",
                "q35",
                "-smp",
                "2",
                "-no-reboot",
                "-daemonize",
            ],
        );
        qemu.args(["-display", "none", "-pidfile", "pid", "-monitor", "unix:monitor,server,nowait"]);
        qemu.args(["-serial", "file:serial.log"]);
        qemu.args(["-drive", "file=disk.img,if=virtio,format=raw,snapshot=on,cache=unsafe"]);
        qemu.args(["-nic", &format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22")]);
        match self {
            Host::Xen => {
                let xen = "console=com1 com1=115200,8n1 dom0_mem=1024M dom0_max_vcpus=2 loglvl=all guest_loglvl=all \
                           noreboot cpuidle=0 spec-ctrl=eager-fpu";
                let dom0 = "kernel console=hvc0 root=/dev/vda rw init=/lab-init net.ifnames=0 quiet,initrd";
                qemu.args(["-m", "3072", "-kernel", "xen.elf", "-append", xen, "-initrd", dom0]);
            }
            Host::Kvm => {
                let linux = "console=ttyS0 root=/dev/vda rw init=/lab-init net.ifnames=0 quiet nokaslr";
                qemu.args(["-m", "3072", "-kernel", "kernel", "-append", linux, "-initrd", "initrd"]);
            }
        }
        let dir = self.dir();
        qemu.current_dir(&dir).env("TMPDIR", &dir).quiet()?;
        fs::write(dir.join("port"), port.to_string())?;
        Ok(())
    }

    /// Waits until it answers.
    pub(super) fn wait(self) -> Result<()> {
        let start = Instant::now();
        while !self.ssh("true").succeeds() {
            if self.pid().is_none() || start.elapsed() > BOOT_LIMIT {
                let log = fs::read(self.dir().join("serial.log")).unwrap_or_default();
                bail!("the {self} host does not come up:\n{}", tail(&String::from_utf8_lossy(&log), 20));
            }
            sleep(Duration::from_secs(2));
        }
        step(self.status());
        Ok(())
    }

    /// Stops it if it runs.
    pub(super) fn down(self) -> Result<()> {
        if let Some(pid) = self.pid() {
            step(format!("stopping the {self} host"));
            command("kill", [pid.to_string()]).quiet()?;
            while self.pid().is_some() {
                sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// One line: whether it runs and how to reach it.
    pub(super) fn status(self) -> String {
        match self.pid() {
            Some(pid) => format!("{self} host: process {pid}, {}", self.ssh_line()),
            None => format!("{self} host: down"),
        }
    }

    /// A command that runs `line` in its shell, or opens a shell for an empty line.
    pub(crate) fn ssh(self, line: &str) -> Command {
        let mut ssh =
            command("ssh", ["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=20", "-p", &self.port().to_string()]);
        ssh.arg("-i").arg(key()).arg("root@127.0.0.1");
        if !line.is_empty() {
            ssh.arg(line);
        }
        ssh
    }

    /// Writes a file in the host.
    pub(crate) fn send(self, bytes: &[u8], path: &str) -> Result<()> {
        let mut ssh = self.ssh(&format!("cat > {path}")).stdin(Stdio::piped()).spawn()?;
        // Dropped at once: the other side waits for the end.
        ssh.stdin.take().context("no pipe to ssh")?.write_all(bytes)?;
        if !ssh.wait()?.success() {
            bail!("cannot write {path} in the {self} host");
        }
        Ok(())
    }

    /// Reads a file in the host, compressed on the way.
    pub(crate) fn fetch(self, path: &str) -> Result<Vec<u8>> {
        let output = self.ssh(&format!("zstd -q -3 -c {path}")).output()?;
        if !output.status.success() {
            bail!("cannot read {path} in the {self} host");
        }
        Ok(zstd::decode_all(output.stdout.as_slice())?)
    }

    /// One line on what the host is, for a fixture's origin.
    pub(crate) fn describe(self) -> Result<String> {
        let kernel = self.ssh("uname -r").read()?;
        Ok(format!("the lab's {self} host: Linux {} on emulated -cpu {CPU}", kernel.trim()))
    }

    fn ssh_line(self) -> String {
        let ssh = self.ssh("");
        let words: Vec<_> = ssh.get_args().map(|word| word.to_string_lossy()).collect();
        format!("ssh {}", words.join(" "))
    }

    /// The process of the running host. A process id from before a reboot may be anyone's: only a QEMU that was
    /// started in this directory counts.
    fn pid(self) -> Option<u32> {
        let pid = fs::read_to_string(self.dir().join("pid")).ok()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let hostfwd = format!("127.0.0.1:{}-:22", self.port());
        line.windows(hostfwd.len()).any(|window| window == hostfwd.as_bytes()).then_some(pid)
    }

    fn port(self) -> u16 {
        let noted =
            fs::read_to_string(self.dir().join("port")).ok().and_then(|port| port.trim().parse().ok());
        noted.unwrap_or(self.usual_port())
    }

    fn usual_port(self) -> u16 {
        match self {
            Host::Xen => 2232,
            Host::Kvm => 2233,
        }
    }

    fn free_port(self) -> Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", self.usual_port()))
            .or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
        let address =
            listener.and_then(|listener| listener.local_addr()).context("no free port on 127.0.0.1")?;
        Ok(address.port())
    }
}
