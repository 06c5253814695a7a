//! Live moves to Xen in the lab: `hyperferry send` takes a running guest out of a QEMU on the KVM host and hands it to
//! the Xen host's own `xl migrate-receive`.
//!
//! ```text
//! KVM host                                               Xen host
//! QEMU -- hyperferry send -- [cut] -- ssh ------------- sshd -- [cut] -- xl migrate-receive
//! ```
//!
//! `cut` stands at one end of the connection: at that of what it is to kill.

mod settle;
mod stop;

use std::{
    fmt, fs,
    ops::Range,
    path::Path,
    process::Stdio,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::stop::Running;
use super::{
    Host,
    console::{Judged, now},
    live::{self, Guest, boot_again, counted, lost_in_emulation},
    network::{MACHINE, give_key, ssh_to},
};
use crate::cut::Phase;

/// Beats at each stop of a guest.
const BEATS: usize = 20;
/// How often a guest is started: some starts end in the emulation's own faults.
const STARTS: u32 = 3;
/// How long a guest may take to its beats; the hosts may be busy.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Struck {
    /// `hyperferry send`.
    Hyperferry,
    /// The ssh that it started.
    Ssh,
    /// `xl migrate-receive` on the Xen host.
    Xl,
    /// The Xen host's network, for a minute and a half.
    Network,
    /// The Xen host, as by a loss of power.
    Host,
}

impl Struck {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Hyperferry, Self::Ssh, Self::Xl, Self::Network, Self::Host];

    /// The host on which `cut` can do it, and how that says it.
    fn by(self) -> (Host, &'static str) {
        match self {
            Self::Hyperferry => (Host::Kvm, "sender"),
            Self::Ssh => (Host::Kvm, "receiver"),
            Self::Xl => (Host::Xen, "receiver"),
            Self::Network => (Host::Xen, "network"),
            Self::Host => (Host::Xen, "host"),
        }
    }
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hyperferry => "hyperferry",
            Self::Ssh => "ssh",
            Self::Xl => "xl",
            Self::Network => "network",
            Self::Host => "host",
        })
    }
}

impl FromStr for Struck {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = || Self::ALL.map(|struck| struck.to_string()).join(", ");
        let found = Self::ALL.into_iter().find(|struck| struck.to_string() == name);
        found.with_context(|| format!("what can be killed is {}", names()))
    }
}

/// What a guest has besides processors, memory and a serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// Nothing.
    #[default]
    Bare,
    /// A standard VGA, an e1000 network card and an IDE disk.
    Std,
    /// A Cirrus VGA, an rtl8139 network card and an IDE disk.
    Cirrus,
}

impl FromStr for Devices {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "bare" => Ok(Self::Bare),
            "std" => Ok(Self::Std),
            "cirrus" => Ok(Self::Cirrus),
            _ => bail!("the devices are bare, std and cirrus"),
        }
    }
}

/// What moves, and what goes wrong meanwhile.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guest.
    pub guest: Guest,
    /// Version of the QEMU that runs it on the KVM host.
    pub qemu: &'static str,
    /// Born on Xen it goes to the KVM host, back, and there again; otherwise it is born under QEMU, and goes to Xen.
    pub trip: bool,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Its devices.
    pub devices: Devices,
    /// Its local APIC timers tick and its HPET counts, and a QEMU that takes it gets the platform shim.
    pub clocks: bool,
    /// What is killed on the way to Xen, and when.
    pub kill: Option<(Struck, Phase)>,
    /// More options of `hyperferry send`.
    pub options: String,
}

impl Plan {
    /// A guest that is born under QEMU.
    #[must_use]
    pub fn born_under_qemu(guest: Guest, qemu: &'static str) -> Self {
        Self {
            guest,
            qemu,
            trip: false,
            vcpus: 1,
            devices: Devices::default(),
            clocks: false,
            kill: None,
            options: String::new(),
        }
    }

    /// A guest that is born on Xen and goes to and fro.
    #[must_use]
    pub fn trip(guest: Guest, qemu: &'static str) -> Self {
        let vcpus = if guest == Guest::Witness { 2 } else { 1 };
        Self { trip: true, vcpus, ..Self::born_under_qemu(guest, qemu) }
    }

    /// This, and something is killed.
    #[must_use]
    pub fn with(self, struck: Struck, phase: Phase) -> Self {
        Self { kill: Some((struck, phase)), ..self }
    }
}

/// How a move went.
#[derive(Debug)]
pub struct Moved {
    /// What was wanted.
    pub plan: Plan,
    /// Where to.
    pub to: Host,
    /// What the guest said at its last stop and at this one.
    pub judged: Judged,
    /// From the start of the command to its end.
    pub took: Duration,
    /// How often the sender went through the guest's memory.
    pub rounds: u64,
    /// Bytes of Xen's stream.
    pub bytes: u64,
    /// Where the guest is in the end.
    pub place: &'static str,
    /// What was not as it should be.
    pub faults: Vec<String>,
    /// What the command said, and `hyperferry resolve` after it.
    pub said: String,
    /// The guest's last beat.
    pub last: String,
}

/// Heads the lines of [`Moved`].
pub const HEADING: &str = "guest   qemu to  killed                     s  silence  usual rounds       MB beats   bad  lost  stood  guest is";

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let killed = match (self.to, self.plan.kill) {
            (Host::Xen, Some((struck, phase))) => format!("{struck} at {phase}"),
            _ => String::new(),
        };
        write!(f, "{:7} {:4} {:3} {killed:24}", self.plan.guest, self.plan.qemu, self.to.to_string())?;
        write!(f, "{:6.1}", self.took.as_secs_f64())?;
        live::figures(f, &self.judged, self.rounds, self.bytes)?;
        write!(f, "  {}", self.place)?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n    WRONG: {fault}"))
    }
}

/// The two hosts, with `hyperferry` on the KVM host and `cut` on both.
#[derive(Debug)]
pub struct Sends {
    hyperferry: Vec<u8>,
    cut: Vec<u8>,
    shim: Option<Vec<u8>>,
    /// A guest under QEMU that stayed, and can be sent again.
    stayed: Option<(Plan, Running)>,
}

impl Sends {
    /// Puts these programs there; they have to run in the hosts. The platform shim is wanted for guests with clocks.
    pub fn set_up(hyperferry: &Path, cut: &Path, shim: Option<&Path>) -> Result<Self> {
        let shim = shim.map(fs::read).transpose()?;
        let sends = Self { hyperferry: fs::read(hyperferry)?, cut: fs::read(cut)?, shim, stayed: None };
        Host::PAIR.into_iter().try_for_each(|host| sends.equip(host))?;
        Ok(sends)
    }

    fn equip(&self, host: Host) -> Result<()> {
        give_key(host)?;
        live::install(host, &self.cut, "cut")?;
        // What `devices` needs. The bridge leads nowhere.
        host.send(&super::disk(), stop::DISK)?;
        match host {
            Host::Kvm => {
                live::install(host, &self.hyperferry, "hyperferry")?;
                match &self.shim {
                    Some(shim) => live::install(host, shim, stop::SHIM),
                    None => host.run(&format!("rm -f /root/live/{}", stop::SHIM)).map(drop),
                }
            }
            _ => host.run("ip link add xenbr0 type bridge 2>/dev/null; true").map(drop),
        }
    }

    /// All moves of a plan; `tell` hears of each. A guest that the emulated processor lost in Xen has not been moved:
    /// again.
    pub fn run(&mut self, plan: &Plan, mut tell: impl FnMut(&Moved)) -> Result<()> {
        for start in 1..=STARTS {
            let lost = self.once(plan, start < STARTS, &mut tell)?;
            if !lost {
                break;
            }
            eprintln!("the emulated processor gave the guest Xen's registers (tests/lab/README.md); again");
        }
        Ok(())
    }

    /// True if the emulation lost the guest, and nobody was told.
    fn once(&mut self, plan: &Plan, again: bool, tell: &mut impl FnMut(&Moved)) -> Result<bool> {
        let stayed =
            self.stayed.take().filter(|(before, guest)| before.is_same_guest(plan) && guest.waits_again());
        let mut guest = match stayed {
            Some((_, guest)) => guest,
            None => stop::start(plan)?,
        };
        let mut good = true;
        let legs: &[Host] = if plan.trip { &[Host::Kvm, Host::Xen, Host::Kvm] } else { &[Host::Xen] };
        for to in legs {
            let moved =
                if *to == Host::Xen { self.send(plan, &mut guest)? } else { receive(plan, &mut guest)? };
            good = moved.faults.is_empty();
            if !good && again && lost_in_emulation()? {
                return Ok(true);
            }
            tell(&moved);
            if !good || guest.host() != *to {
                break;
            }
        }
        // A host that was away has lost its console.
        let away = matches!(plan.kill, Some((Struck::Network | Struck::Host, _)));
        if good && !plan.trip && guest.host() == Host::Kvm && !away {
            self.stayed = Some((plan.clone(), guest));
        } else {
            stop::clean();
        }
        Ok(false)
    }

    /// To Xen by `hyperferry send`.
    fn send(&self, plan: &Plan, guest: &mut Running) -> Result<Moved> {
        let there = guest.next_stop(Host::Xen)?;
        let way = way(plan.kill);
        Host::Kvm.install(way.as_bytes(), "/root/live/way")?;
        let line = format!(
            "/root/live/hyperferry send {} {MACHINE} --ssh /root/live/way --journal /root/live/journal \
             --serial file:{} {} --progress none 2>&1
             echo \"ended with $?\"",
            guest.monitor(),
            there.serial(),
            plan.options,
        );
        let began = (Instant::now(), now());
        let output = Host::Kvm.ssh(&line).stdin(Stdio::null()).output()?;
        let migration = Migration { took: began.0.elapsed(), between: began.1..now() };
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        match plan.kill {
            Some((Struck::Network, _)) => Host::Xen.wait(PATIENCE)?,
            Some((Struck::Host, _)) => {
                boot_again(Host::Xen)?;
                self.equip(Host::Xen)?;
            }
            _ => {}
        }
        let mut faults = Vec::new();
        let place = settle::sent(plan, guest, there, &mut said, &mut faults)?;
        Ok(judge(plan, guest, Host::Xen, migration, place, faults, said))
    }
}

impl Drop for Sends {
    fn drop(&mut self) {
        if self.stayed.is_some() {
            stop::clean();
        }
    }
}

/// The ssh of `hyperferry send`, a script: a shell's, or with `cut` at one of its ends where it reaches the receiver.
fn way(kill: Option<(Struck, Phase)>) -> String {
    let ssh = ssh_to(Host::Xen);
    let (host, strike) = match kill {
        None => (Host::Kvm, String::new()),
        Some((struck, phase)) => {
            let (host, word) = struck.by();
            (host, format!("{word} {phase} "))
        }
    };
    let cut = format!("/root/live/cut {strike}--");
    let connect = match host {
        Host::Kvm => format!("exec {cut} {ssh} \"$@\""),
        _ => format!("exec {ssh} ${{words%%xl migrate-receive*}} {cut} xl migrate-receive"),
    };
    format!(
        "#!/bin/sh
         words=\"$*\"
         case $words in *'xl migrate-receive'*) ;; *) exec {ssh} \"$@\" ;; esac
         {connect}
         "
    )
    .replace("\n         ", "\n")
}

/// To the KVM host by `xl migrate`.
fn receive(plan: &Plan, guest: &mut Running) -> Result<Moved> {
    let there = guest.next_stop(Host::Kvm)?;
    let receive = format!(
        "/root/live/cut -- /root/live/hyperferry receive --qemu qemu-{} --journal /root/live/journal --serial {} \
         --map-disk hda={}",
        plan.qemu,
        there.serial(),
        stop::DISK
    );
    let line = format!(
        "xl migrate -s '' {} 'exec {} {MACHINE} {receive}' 2>&1; echo \"ended with $?\"",
        guest.name(),
        ssh_to(Host::Kvm)
    );
    let began = (Instant::now(), now());
    let output = Host::Xen.ssh(&line).stdin(Stdio::null()).output()?;
    let migration = Migration { took: began.0.elapsed(), between: began.1..now() };
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut faults = Vec::new();
    let place = settle::received(guest, there, &mut said, &mut faults)?;
    Ok(judge(plan, guest, Host::Kvm, migration, place, faults, said))
}

/// When the command ran.
struct Migration {
    took: Duration,
    between: Range<f64>,
}

fn judge(
    plan: &Plan,
    guest: &Running,
    to: Host,
    Migration { took, between }: Migration,
    place: &'static str,
    mut faults: Vec<String>,
    said: String,
) -> Moved {
    let judged = Judged::once_settled(|| Judged::of(&guest.seen(), guest.pause(&between)));
    let seen = guest.seen();
    faults.extend(judged.faults(&seen, Some(0.0)));
    let (rounds, bytes) = (counted(&said, "rounds"), counted(&said, "bytes"));
    let beats = seen.lines.iter().rev().map(|(_, line)| line).find(|line| line.starts_with("WITNESS "));
    let last = beats.cloned().unwrap_or_default();
    Moved { plan: plan.clone(), to, judged, took, rounds, bytes, place, faults, said, last }
}

impl Plan {
    /// Whether a guest of that plan can be used for this one.
    fn is_same_guest(&self, other: &Self) -> bool {
        let guest = |plan: &Self| (plan.guest, plan.qemu, plan.trip, plan.vcpus, plan.devices, plan.clocks);
        guest(self) == guest(other)
    }
}

/// The process id and the monitor that `hyperferry receive` names last.
fn monitor_in(said: &str) -> Result<String> {
    let line = said.lines().rev().find(|line| line.contains("QEMU process"));
    let monitor = line.and_then(|line| line.split_once(", QMP ")).map(|(_, path)| path.trim().to_owned());
    monitor.context("hyperferry does not say where the guest is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_stands_where_it_can_kill() {
        let xl = way(Some((Struck::Xl, Phase::Go)));
        assert!(
            xl.contains("${words%%xl migrate-receive*} /root/live/cut receiver go -- xl migrate-receive"),
            "{xl}"
        );
        let ssh = way(Some((Struck::Ssh, Phase::Pages)));
        assert!(ssh.contains("exec /root/live/cut receiver pages -- ssh "), "{ssh}");
        let plain = way(None);
        assert!(plain.starts_with("#!/bin/sh\n") && plain.contains("exec /root/live/cut -- ssh "), "{plain}");
    }

    #[test]
    fn the_monitor_is_named_last() {
        let said =
            "moving\nthe guest runs here: QEMU process 3097, QMP /root/live/journal/1-2.qmp\nended with 0\n";
        assert_eq!(monitor_in(said).unwrap(), "/root/live/journal/1-2.qmp");
        assert!(monitor_in("no").is_err());
    }
}
