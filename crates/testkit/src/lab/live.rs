//! Live moves in the lab: an unmodified `xl migrate` takes a running guest from the Xen host into QEMU on the KVM host.
//!
//! `cut` stands between the two on the KVM host. It counts what passes, and can kill.

use std::{
    fmt, fs,
    path::Path,
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Host,
    console::{Console, Judged},
};
use crate::{
    checkout,
    cut::{Kill, Phase},
};

/// Beats before a move, and after it.
const BEATS: usize = 10;
/// How often a guest is started: some starts end in the emulation's own faults.
const STARTS: u32 = 3;
/// How long a guest may take to its beats; the hosts may be busy.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long a QEMU may outlive its gateway, which ends it by ending its stream.
const QEMU_ENDS: Duration = Duration::from_secs(20);
/// By how much a guest's clock may differ from this machine's beyond the time it was stopped and the usual time between
/// two beats, seconds.
pub const CLOCK_TOLERANCE: f64 = 1.5;

/// A guest that prints beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The bare-metal witness on two vCPUs, 16 MB.
    Witness,
    /// Linux, 256 MB, which rewrites and verifies memory all the time.
    Linux,
}

impl Guest {
    fn configuration(self, name: &str, serial: &str) -> String {
        let own = match self {
            Self::Witness => {
                "memory=16\nvcpus=2\nkernel=\"/guest/witness.bzimage\"\n\
                 cmdline=\"avx=off mem=1 skip=pat,cr2 lapic=off\"\n"
            }
            // Without AVX: Xen does not hear of it in this emulation (tests/lab/README.md).
            Self::Linux => {
                "memory=256\nvcpus=1\nkernel=\"/guest/vmlinuz\"\nramdisk=\"/guest/initrd.gz\"\ncpuid=\"host,avx=0\"\n\
                 cmdline=\"console=ttyS0 nokaslr nopv quiet clocksource=tsc tsc=reliable hpet=disable\"\n"
            }
        };
        configuration(name, serial, &format!("{own}nographic=1\nvga=\"none\"\n"))
    }
}

/// A domain without PV drivers that stays to be looked at when it dies; `own` is its kernel and its devices.
pub(super) fn configuration(name: &str, serial: &str, own: &str) -> String {
    format!(
        "name=\"{name}\"\ntype=\"hvm\"\n{own}serial=\"file:{serial}\"\nxen_platform_pci=0\n\
         on_crash=\"preserve\"\non_reboot=\"preserve\"\non_poweroff=\"preserve\"\n"
    )
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
        let found = [Self::Witness, Self::Linux].into_iter().find(|guest| guest.to_string() == name);
        found.context("the guests are witness and linux")
    }
}

/// What moves into what, and what goes wrong meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The guest.
    pub guest: Guest,
    /// Version of the QEMU that takes it.
    pub qemu: &'static str,
    /// What is killed, and when.
    pub kill: Option<(Kill, Phase)>,
}

/// How a move went.
#[derive(Debug)]
pub struct Moved {
    /// What was wanted.
    pub plan: Plan,
    /// What the guest said, over both hosts.
    pub judged: Judged,
    /// From the start of `xl migrate` to its end.
    pub took: Duration,
    /// How often Xen went through the guest's memory.
    pub rounds: u64,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Where the guest is in the end.
    pub place: &'static str,
    /// What was not as it should be.
    pub faults: Vec<String>,
    /// What `xl migrate` and the receiver said.
    pub said: String,
}

/// Heads the lines of [`Moved`].
pub const HEADING: &str = "guest   qemu killed                   xl s  silence  usual rounds       MB beats   bad  lost behind  guest is";

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let killed = self.plan.kill.map_or_else(String::new, |(kill, phase)| format!("{kill} at {phase}"));
        let Judged { beats, bad, lost, silence, usual, behind } = self.judged;
        write!(f, "{:7} {:4} {killed:24}", self.plan.guest, self.plan.qemu)?;
        write!(f, "{:6.1} {silence:8.2} {usual:6.2} {:6}", self.took.as_secs_f64(), self.rounds)?;
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let megabytes = self.bytes as f64 / 1e6;
        write!(f, " {megabytes:8.1} {beats:5} {bad:5} {lost:5} {behind:6.2}  {}", self.place)?;
        for fault in &self.faults {
            write!(f, "\n    WRONG: {fault}")?;
        }
        Ok(())
    }
}

/// The two hosts, with `hyperferry` and `cut` on the KVM host.
#[derive(Debug)]
pub struct Live {
    binaries: [Vec<u8>; 2],
    /// A guest that stayed where it was, and can move again.
    stayed: Option<Running>,
}

/// A guest, and its serial port on either host.
#[derive(Debug)]
struct Running {
    guest: Guest,
    here: Console,
    elsewhere: Console,
}

impl Live {
    /// Puts these programs there; both have to run in the KVM host.
    pub fn set_up(hyperferry: &Path, cut: &Path) -> Result<Self> {
        let live = Self { binaries: [fs::read(hyperferry)?, fs::read(cut)?], stayed: None };
        live.equip()?;
        Ok(live)
    }

    fn equip(&self) -> Result<()> {
        for (bytes, name) in self.binaries.iter().zip(["hyperferry", "cut"]) {
            install(Host::Kvm, bytes, name)?;
        }
        give_key(Host::Xen)
    }

    /// One move, from the guest's start to where it is in the end. A guest that the emulated processor lost in Xen has not
    /// been moved: again.
    pub fn run(&mut self, plan: Plan) -> Result<Moved> {
        for _ in 1..STARTS {
            let moved = self.once(plan)?;
            if moved.faults.is_empty() || !lost_in_emulation()? {
                return Ok(moved);
            }
            eprintln!("the emulated processor gave the guest Xen's registers (tests/lab/README.md); again");
        }
        self.once(plan)
    }

    fn once(&mut self, plan: Plan) -> Result<Moved> {
        let name = format!("live-{}", plan.guest);
        let there = format!("/root/live/{name}.serial");
        let again = self.stayed.take().filter(|stayed| stayed.guest == plan.guest && stayed.waits_again());
        let running = again.map_or_else(|| start(plan.guest, &name, &there), Ok)?;
        let (here, elsewhere) = (&running.here, &running.elsewhere);
        let before = here.seen().beats().len();
        let began = Instant::now();
        let said = migrate(plan, &name)?;
        let took = began.elapsed();
        if let Some((Kill::Network, _)) = plan.kill {
            Host::Kvm.wait(PATIENCE)?;
        }
        if let Some((Kill::Host, _)) = plan.kill {
            boot_again(Host::Kvm)?;
            self.equip()?;
        }
        let mut faults = Vec::new();
        let place = settle(plan, &name, here, elsewhere, before, &mut faults)?;
        let judged = Judged::of(&here.seen().then(elsewhere.seen()));
        faults.extend(judged.faults(&here.seen().then(elsewhere.seen()), plan.guest == Guest::Linux));
        let (rounds, bytes) = (counted(&said, "rounds"), counted(&said, "bytes"));
        if faults.is_empty()
            && place == "in Xen"
            && !matches!(plan.kill, Some((Kill::Host | Kill::Network, _)))
        {
            self.stayed = Some(running);
        } else {
            clean_xen(&name);
        }
        clean_kvm();
        Ok(Moved { plan, judged, took, rounds, bytes, place, faults, said })
    }
}

/// What `cut` has counted, by its last words.
pub(super) fn counted(said: &str, name: &str) -> u64 {
    let line = said.lines().rev().find(|line| line.starts_with("cut: rounds=")).unwrap_or_default();
    let value = line.split([' ', '=']).skip_while(|word| *word != name).nth(1);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

impl Running {
    /// Forgets what it has said, and waits for more.
    fn waits_again(&self) -> bool {
        self.here.forget();
        self.elsewhere.forget();
        self.here.waits_for_beats(BEATS, PATIENCE)
    }
}

/// Puts a program where a host keeps ours.
pub(super) fn install(host: Host, bytes: &[u8], name: &str) -> Result<()> {
    host.run("mkdir -p /root/live/journal")?;
    host.send(bytes, &format!("/root/live/{name}.new"))?;
    host.run(&format!("cd /root/live; chmod +x {name}.new; mv {name}.new {name}")).map(drop)
}

/// Lets a host reach the others.
pub(super) fn give_key(host: Host) -> Result<()> {
    host.run("mkdir -p /root/.ssh")?;
    host.send(&fs::read(Host::key())?, "/root/.ssh/id_lab")?;
    host.run("chmod 600 /root/.ssh/id_lab").map(drop)
}

/// Ends what a guest of that name may have left on the Xen host.
pub(super) fn clean_xen(name: &str) {
    let script =
        format!("for name in {name} {name}--incoming {name}--migratedaway; do xl destroy $name; done; true");
    drop(Host::Xen.ssh(&script).stderr(Stdio::null()).stdout(Stdio::null()).status());
}

/// Ends what any guest may have left on the KVM host.
pub(super) fn clean_kvm() {
    let script = "cd /root/live; for process in $(ours hyperferry) $(ours qemu); do kill -9 $process; done
                  rm -rf journal *.serial; mkdir journal";
    drop(Host::Kvm.ssh(&format!("{OURS}{script}")).stderr(Stdio::null()).stdout(Stdio::null()).status());
}

/// Shell: processes of a program that have a path of ours in their command line.
pub(super) const OURS: &str = "ours() {
    for process in /proc/[0-9]*; do
        case $(readlink $process/exe) in
        *$1*) tr '\\0' ' ' <$process/cmdline | grep -q /root/live/ && basename $process ;;
        esac
    done
}
";

/// Whether the last guest died with the hypervisor's own code segment in its registers: nothing but a fault of the
/// emulation puts it there.
pub(super) fn lost_in_emulation() -> Result<bool> {
    const SCRIPT: &str = "xl dmesg -c | grep -A 6 'Triple fault' | grep -q 'RIP: *e008:' && echo lost; true";
    Ok(Host::Xen.run(SCRIPT)?.contains("lost"))
}

/// Starts a guest on the Xen host and waits for its beats.
fn start(guest: Guest, name: &str, there: &str) -> Result<Running> {
    let serial = format!("/var/log/xen/{name}.serial");
    for _ in 0..STARTS {
        // One guest at a time: two make the emulation's faults frequent.
        [Guest::Witness, Guest::Linux].iter().for_each(|guest| clean_xen(&format!("live-{guest}")));
        clean_kvm();
        Host::Xen.run(&format!("rm -f {serial}; xl dmesg -c >/dev/null"))?;
        Host::Xen.send(guest.configuration(name, &serial).as_bytes(), &format!("/root/{name}.cfg"))?;
        Host::Xen.run(&format!("xl create -q /root/{name}.cfg"))?;
        let here = Console::watch(Host::Xen, &serial)?;
        let elsewhere = Console::watch(Host::Kvm, there)?;
        if here.waits_for_beats(BEATS, PATIENCE) {
            return Ok(Running { guest, here, elsewhere });
        }
        eprintln!("{name} did not come to its beats: {:?}", here.seen().lines.last());
    }
    bail!("{name} did not start in {STARTS} attempts");
}

/// The command by which one host reaches another, without the name.
pub(super) fn ssh_to(host: Host) -> String {
    format!(
        "ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ServerAliveInterval=5 \
         -i /root/.ssh/id_lab -p {}",
        host.port()
    )
}

/// Where a host finds this machine, and with it all the others' ports.
pub(super) const OUTSIDE: &str = "root@10.0.2.2";

/// Runs `xl migrate` to its end and gives what was said.
fn migrate(plan: Plan, name: &str) -> Result<String> {
    let ssh = ssh_to(Host::Kvm);
    let kill = plan.kill.map_or_else(String::new, |(kill, phase)| format!("{kill} {phase} "));
    let receive = format!(
        "/root/live/cut {kill}-- /root/live/hyperferry receive --qemu qemu-{} --journal /root/live/journal \
         --serial /root/live/{{name}}.serial",
        plan.qemu
    );
    let line =
        format!("xl migrate -s '' {name} 'exec {ssh} {OUTSIDE} {receive}' 2>&1; echo \"xl ended with $?\"");
    let output = Host::Xen.ssh(&line).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where the guest is in the end, and that it is nowhere else.
fn settle(
    plan: Plan,
    name: &str,
    here: &Console,
    elsewhere: &Console,
    before: usize,
    faults: &mut Vec<String>,
) -> Result<&'static str> {
    let resolve = || Host::Kvm.run("/root/live/hyperferry resolve /root/live/journal 2>&1");
    let went_on = || here.waits_for_beats(here.seen().beats().len().max(before) + BEATS, PATIENCE);
    let mut want = |right: bool, what: &str| {
        if !right {
            faults.push(what.to_owned());
        }
    };
    let at_source = |domain: &str| Host::Xen.run(&format!("xl list {domain}")).is_ok();
    let aside = format!("{name}--migratedaway");
    let (undecided, runs_there) = match plan.kill {
        None => (false, true),
        Some((Kill::Qemu, phase)) => (false, phase == Phase::Report),
        Some((_, phase)) => (phase >= Phase::Go, phase == Phase::Report),
    };
    // With the host, its disk is new as well: nobody knows of the move.
    let host_gone = matches!(plan.kill, Some((Kill::Host, _)));
    if runs_there && !host_gone && !matches!(plan.kill, Some((Kill::Qemu, _))) {
        want(elsewhere.waits_for_beats(BEATS, PATIENCE), "it does not go on in KVM");
        want(resolve()?.contains("here: it runs"), "resolve does not find it");
        want(at_source(&aside) == undecided, "the source's copy is not as expected");
        want(!at_source(name), "the source's copy still has its name");
        return Ok("in KVM");
    }
    if runs_there {
        want(!at_source(name), "the source's copy still has its name");
        return Ok("lost after its move");
    }
    let resolved = resolve()?;
    let known = resolved.contains("at the source") || (resolved.is_empty() && !undecided) || host_gone;
    want(known, &format!("resolve says {resolved}"));
    if undecided {
        want(at_source(&aside) && !at_source(name), "the source did not put its copy aside");
        want(elsewhere.seen().beats().is_empty(), "it ran in KVM");
        // What it says has to be done there: ssh HOST '…'
        let by_hand =
            resolved.split('\'').find(|words| words.contains("xl rename")).context("no way back")?;
        Host::Xen.run(&format!("{{ {by_hand}; }} >/dev/null 2>&1"))?;
    }
    want(went_on(), "it does not go on in Xen");
    want(elsewhere.seen().beats().is_empty(), "there are two copies");
    let began = Instant::now();
    let left = || Host::Kvm.run(&format!("{OURS}ours qemu; true"));
    while !left()?.is_empty() && began.elapsed() < QEMU_ENDS {
        std::thread::sleep(Duration::from_secs(1));
    }
    want(left()?.is_empty(), "a QEMU is left");
    Ok(if undecided { "in Xen, by hand" } else { "in Xen" })
}

/// Boots a host that was lost.
pub(super) fn boot_again(host: Host) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["xtask", "lab", "up", &host.to_string()])
        .current_dir(checkout())
        .status()?;
    ensure!(status.success(), "the {host} host does not come up again");
    Ok(())
}
