//! The hosts of the lab, as tests reach them once `cargo xtask lab up` has booted them.

pub mod clock;
pub mod console;
pub mod live;
pub mod network;
pub mod send;

use crate::tools;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Shell lines that make the disk of every fixture that has one, as `fixture.disk`.
pub const MAKE_DISK: &str = "truncate -s 1M fixture.disk
    printf 'hyperferry fixture disk' | dd of=fixture.disk conv=notrunc status=none";

/// Shell lines that wait until a guest has printed more than so many beats to a file, or `gone`, a command, finds that it will
/// print no more.
pub fn await_beats(serial: &str, beats: usize, gone: &str) -> String {
    format!(
        "for i in $(seq 240); do
           [ $(grep -c '^WITNESS' {serial} 2>/dev/null) -gt {beats} ] && break
           {gone} && break
           sleep 1
         done"
    )
}

/// The same disk, as bytes.
pub fn disk() -> Vec<u8> {
    let mut disk = b"hyperferry fixture disk".to_vec();
    disk.resize(1 << 20, 0);
    disk
}

/// ssh's own exit code, where it did not come to run anything.
const SSH_FAILED: i32 = 255;
const SSH_ATTEMPTS: u32 = 2;

/// A host of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Xen 4.17 with a Debian 12 dom0.
    Xen,
    /// An older sender: Xen 4.14 with a Debian 11 dom0.
    Xen414,
    /// A newer sender: Xen 4.20 with a Debian 13 dom0.
    Xen420,
    /// Linux 6.12 with KVM and both QEMU versions.
    Kvm,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Host::Xen => "xen",
            Host::Xen414 => "xen-4.14",
            Host::Xen420 => "xen-4.20",
            Host::Kvm => "kvm",
        })
    }
}

impl FromStr for Host {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = Self::EVERY.into_iter().find(|host| host.to_string() == name);
        named.context("the hosts are xen, xen-4.14, xen-4.20 and kvm")
    }
}

impl Host {
    /// The two that most of the lab is about.
    pub const PAIR: [Host; 2] = [Host::Xen, Host::Kvm];
    /// All of them.
    pub const EVERY: [Host; 4] = [Host::Xen, Host::Xen414, Host::Xen420, Host::Kvm];

    /// The Xen that it runs.
    pub fn xen_version(self) -> Option<&'static str> {
        match self {
            Host::Xen => Some("4.17"),
            Host::Xen414 => Some("4.14"),
            Host::Xen420 => Some("4.20"),
            Host::Kvm => None,
        }
    }

    /// Where its images and, while it runs, its files are.
    pub fn dir(self) -> PathBuf {
        tools::lab().join(self.to_string())
    }

    /// The key that opens every host.
    pub fn key() -> PathBuf {
        tools::lab().join("id_lab")
    }

    /// The port on 127.0.0.1 that leads to its ssh.
    pub fn port(self) -> u16 {
        let noted =
            fs::read_to_string(self.dir().join("port")).ok().and_then(|port| port.trim().parse().ok());
        noted.unwrap_or(self.usual_port())
    }

    /// That port where nothing else holds it.
    pub fn usual_port(self) -> u16 {
        match self {
            Host::Xen => 2232,
            Host::Kvm => 2233,
            Host::Xen414 => 2234,
            Host::Xen420 => 2235,
        }
    }

    /// A command that runs `line` in its shell, or opens a shell for an empty line.
    pub fn ssh(self, line: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=20", "-p", &self.port().to_string()]);
        ssh.arg("-i").arg(Self::key()).arg("root@127.0.0.1");
        if !line.is_empty() {
            ssh.arg(line);
        }
        ssh
    }

    /// Runs a shell script in it and gives what it printed; a failure is an error with that text.
    pub fn run(self, script: &str) -> Result<String> {
        let once = || self.ssh(script).stdin(Stdio::null()).output().context("cannot start ssh");
        let mut output = once()?;
        // A busy host may be too slow for ssh, which then has not run anything.
        for _ in 0..SSH_ATTEMPTS {
            if output.status.code() != Some(SSH_FAILED) || !output.stdout.is_empty() {
                break;
            }
            output = once()?;
        }
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("the {self} host ended with {} after:\n{script}\n{printed}{errors}", output.status);
        }
        Ok(printed)
    }

    /// Waits until it answers.
    pub fn wait(self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        while self.run("true").is_err() {
            if began.elapsed() > limit {
                bail!("the {self} host does not answer");
            }
            sleep(Duration::from_secs(2));
        }
        Ok(())
    }

    /// Writes a file in it.
    pub fn send(self, bytes: &[u8], path: &str) -> Result<()> {
        let mut ssh = self.ssh(&format!("cat > {path}")).stdin(Stdio::piped()).spawn()?;
        // Dropped at once: the other side waits for the end.
        ssh.stdin.take().context("no pipe to ssh")?.write_all(bytes)?;
        if !ssh.wait()?.success() {
            bail!("cannot write {path} in the {self} host");
        }
        Ok(())
    }

    /// Puts a program there, also in the place of one that runs.
    pub fn install(self, bytes: &[u8], path: &str) -> Result<()> {
        self.send(bytes, &format!("{path}.new"))?;
        self.run(&format!("chmod +x {path}.new && mv {path}.new {path}")).map(drop)
    }

    /// Reads a file in it, compressed on the way.
    pub fn fetch(self, path: &str) -> Result<Vec<u8>> {
        let output = self.ssh(&format!("zstd -q -3 -c {path}")).output()?;
        if !output.status.success() {
            bail!("cannot read {path} in the {self} host");
        }
        Ok(zstd::decode_all(output.stdout.as_slice())?)
    }
}
