//! `cargo xtask lab measure`: what a move costs, seen from outside, in one run of the lab.
//!
//! One Linux guest that dirties its memory at a known rate is moved from Xen to QEMU by `hyperferry receive`, from QEMU to QEMU,
//! from QEMU to Xen by `hyperferry send`, and from Xen to Xen, in this order and without a new start, so that all moves meet the
//! same guest and the same load. Each time the stream passes an ssh or a TCP connection through this machine, and once more
//! QEMU's own passes a UNIX socket.
//!
//! *Silence* is the longest time between two lines on the guest's serial port, and between two answers of its emulated
//! network card to pings; *usual* is what these are without a move (medians). Each host tells times by its own clock;
//! [`clock`] sets the hosts' clocks against ours before and after each move.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "figures for people")]

mod clock;
mod transport;
mod watch;

use super::{host, up};
use crate::ci;
use crate::sh::{Run, step};
use anyhow::{Context, Result, bail, ensure};
use clock::Clock;
use hyperferry_testkit::lab::{
    Host,
    network::{GUEST_ADDRESS, give_key, provide_bridge, provide_bridge_helper},
};
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};
use transport::{Lead, Transport};
use watch::Seen;

/// How it is measured.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often the guest is started and goes the whole way.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// What moves: linux, or the bare-metal witness, which starts quickly but answers no pings and keeps its own pace.
    #[arg(long, default_value = "linux", value_parser = ["linux", "witness"])]
    guest: String,
    /// Memory of the guest, MiB.
    #[arg(long, default_value_t = 128)]
    memory: u32,
    /// A beat of the guest begins that often, milliseconds; each rewrites 64 pages and prints a line.
    #[arg(long, default_value_t = 200)]
    period: u32,
    /// A ping that often, milliseconds. Each is some ten accesses to the network card, and now and then one kills the
    /// guest by a fault of the emulator (tests/lab/README.md).
    #[arg(long, default_value_t = 100)]
    ping: u32,
    /// What carries the streams: ssh, as `xl migrate` does by itself, or tcp, without a cipher.
    #[arg(long, value_enum, default_value_t = Transport::Ssh)]
    transport: Transport,
    /// QEMU on the destination.
    #[arg(long, default_value = "10.0", value_parser = ["7.2", "10.0"])]
    qemu: String,
    /// A program (linked statically) in the place of this checkout's own, to compare the two.
    #[arg(long)]
    hyperferry: Option<PathBuf>,
    /// A file for every single move, and all that was printed during it.
    #[arg(long)]
    json: Option<PathBuf>,
}

const GUEST: &str = "measure";
const BRIDGE: &str = "lab0";
const MAC: &str = "00:16:3e:4d:00:02";
/// Everything of ours in a host.
const DIR: &str = "/root/measure";
/// What hyperferry says of its progress: words over ssh would take time from an emulated processor.
const PROGRESS: &str = "/root/measure/progress";
/// How the log of the probe has a beat.
const BEAT: &str = " line WITNESS ";
/// What belongs to a move: what was seen from this much before its command to this much after.
const AROUND: Duration = Duration::from_secs(6);

/// The moves, in the order in which they are made.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
enum Way {
    #[serde(rename = "Xen to QEMU")]
    XenToQemu,
    #[serde(rename = "QEMU to QEMU")]
    QemuToQemu,
    #[serde(rename = "QEMU to QEMU, socket")]
    QemuToQemuSocket,
    #[serde(rename = "QEMU to Xen")]
    QemuToXen,
    #[serde(rename = "Xen to Xen")]
    XenToXen,
}

const WAYS: [(Way, &str); 5] = [
    (Way::XenToQemu, "Xen to QEMU"),
    (Way::QemuToQemu, "QEMU to QEMU"),
    (Way::QemuToQemuSocket, "QEMU to QEMU, socket"),
    (Way::QemuToXen, "QEMU to Xen"),
    (Way::XenToXen, "Xen to Xen"),
];

/// What was seen of one move.
#[derive(Serialize)]
struct Moved {
    way: Way,
    /// Of the command, seconds.
    total: f64,
    /// Bytes that the sender's network card sent; none for a socket.
    sent: u64,
    /// Rounds of copying; 0 where nobody says.
    rounds: u64,
    /// What hyperferry says of the time for which the guest stood still.
    pause: Option<watch::Pause>,
    #[serde(flatten)]
    seen: Seen,
    /// What was said during it, each line with seconds since its start.
    said: Vec<(f64, String)>,
}

/// Measures, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let binary = match &options.hyperferry {
        Some(binary) => binary.clone(),
        None => {
            let [binary, _] = ci::portable_binaries()?;
            binary
        }
    };
    let mut lab = Lab::new(options, &binary, false)?;
    let mut moves = Vec::new();
    for repeat in 1..=options.repeats {
        step(format!("round {repeat} of {}", options.repeats));
        match lab.round(&mut moves) {
            Ok(()) => {}
            // A fault of the emulation (tests/lab/README.md) may stay in a host as long as it runs.
            Err(error) => {
                step(format!("round {repeat} ended early: {error:#}"));
                if repeat < options.repeats {
                    lab = Lab::new(options, &binary, true)?;
                }
            }
        }
        lab.clean();
        if let Some(path) = &options.json {
            fs::write(path, serde_json::to_vec_pretty(&moves)?)?;
        }
    }
    print(&moves)
}

/// What all rounds need in the hosts: the programs, a way from host to host, a network of their own.
fn prepare(binary: &Path) -> Result<()> {
    let scripts = crate::paths::checkout().join("tests/lab/measure");
    for host in Host::PAIR {
        give_key(host)?;
        host.run(&format!("mkdir -p {DIR}"))?;
        for script in ["probe", "move-qemu"] {
            host.install(&fs::read(scripts.join(script))?, &format!("{DIR}/{script}"))?;
        }
        provide_bridge(host, BRIDGE)?;
        host.run(&format!("ip neighbour replace {GUEST_ADDRESS} lladdr {MAC} dev {BRIDGE} nud permanent"))?;
    }
    provide_bridge_helper()?;
    Host::Kvm.install(&fs::read(binary)?, &format!("{DIR}/hyperferry"))
}

/// The QEMU that has the guest, in the KVM host.
struct Qemu {
    pid: u64,
    qmp: String,
}

struct Lab<'a> {
    clocks: [Clock; 2],
    options: &'a Options,
    qemu: Option<Qemu>,
}

impl<'a> Lab<'a> {
    /// Both hosts, ready; booted anew if wanted.
    fn new(options: &'a Options, binary: &Path, anew: bool) -> Result<Self> {
        if anew {
            Host::PAIR.into_iter().try_for_each(host::down)?;
        }
        up(&Host::PAIR)?;
        prepare(binary)?;
        Ok(Self { clocks: [Clock::start(Host::Xen)?, Clock::start(Host::Kvm)?], options, qemu: None })
    }

    /// One guest, all the way.
    fn round(&mut self, moves: &mut Vec<Moved>) -> Result<()> {
        self.clean();
        self.start()?;
        for (way, name) in WAYS {
            let moved = self.measure(way).with_context(|| name.to_owned())?;
            step(format!(
                "{name}: {:.2} s in all, silence {:.2} s (ping {:.2} s), {} rounds",
                moved.total, moved.seen.serial, moved.seen.ping, moved.rounds
            ));
            moves.push(moved);
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let Options { memory, period, ping, .. } = self.options;
        let kernel = if self.options.guest == "linux" {
            // Without AVX, for the emulator's sake (tests/lab/README.md).
            format!(
                "cpuid=\"host,avx=0\"\nkernel=\"/guest/vmlinuz\"\nramdisk=\"/guest/initrd.gz\"\ncmdline=\"console=ttyS0 nokaslr nopv quiet \
                 clocksource=tsc tsc=reliable hpet=disable nolapic_timer witness.mb=4 witness.ms={period} \
                 witness.ip={GUEST_ADDRESS}/24\""
            )
        } else {
            // What QEMU with KVM changes by itself is left out (fixtures/README.md).
            let skip = "skip=pat,cr2,bios_page,cmos_index";
            format!("kernel=\"/guest/witness.bzimage\"\ncmdline=\"avx=off mem=1 {skip} lapic=off\"")
        };
        let config = format!(
            r#"name="{GUEST}"
type="hvm"
memory={memory}
vcpus=1
{kernel}
serial="file:{DIR}/serial"
vif=["type=ioemu,model=e1000,mac={MAC},bridge={BRIDGE}"]
nographic=1
vga="none"
xen_platform_pci=0
on_crash="preserve"
on_reboot="preserve"
on_poweroff="preserve"
"#
        );
        Host::Xen.send(config.as_bytes(), &format!("{DIR}/guest.cfg"))?;
        for host in Host::PAIR {
            host.run(&format!(
                "cd {DIR}; rm -f serial log
                 setsid ./probe {GUEST_ADDRESS} {DIR}/serial {ping} >log 2>probe.said </dev/null & echo $! >probe.pid"
            ))?;
        }
        Host::Xen.run(&format!("xl create -q {DIR}/guest.cfg"))?;
        wait_for_beats(Host::Xen, 20, 600).context("the guest does not start")
    }

    fn measure(&mut self, way: Way) -> Result<Moved> {
        let (sender, receiver) = match way {
            Way::XenToXen => (Host::Xen, Host::Xen),
            Way::XenToQemu => (Host::Xen, Host::Kvm),
            Way::QemuToQemu | Way::QemuToQemuSocket => (Host::Kvm, Host::Kvm),
            Way::QemuToXen => (Host::Kvm, Host::Xen),
        };
        sleep(AROUND);
        for clock in &mut self.clocks {
            clock.set()?;
        }
        let sent_before = sent_by(sender)?;
        let beats_before =
            receiver.run(&format!("grep -c '{BEAT}' {DIR}/log || true"))?.trim().parse::<u32>()?;
        let lead = self.lead(way)?;
        let began = clock::now();
        let began_at = Instant::now();
        let mut said = match way {
            Way::XenToXen | Way::XenToQemu => self.by_xl(&lead)?,
            Way::QemuToQemu | Way::QemuToQemuSocket => Vec::new(),
            Way::QemuToXen => self.by_send(&lead)?,
        };
        let mut total = began_at.elapsed().as_secs_f64();
        if way == Way::XenToQemu {
            said.extend(lead.said()?);
            self.qemu = Some(named(&said).context("hyperferry does not say where the guest is")?);
        }
        let mut pause = None;
        let rounds = match way {
            Way::XenToXen => 0,
            Way::XenToQemu | Way::QemuToXen => {
                let progress = Host::Kvm.run(&format!("cat {PROGRESS}"))?;
                pause = watch::pause(&progress);
                watch::rounds(&progress)
            }
            Way::QemuToQemu | Way::QemuToQemuSocket => {
                let account = self.by_qemu(way, &lead)?;
                total = account.get("seconds").and_then(Value::as_f64).context("no time")?;
                let counted = account.pointer("/account/ram/dirty-sync-count").and_then(Value::as_u64);
                counted.unwrap_or_default()
            }
        };
        let sent = sent_by(sender)? - sent_before;
        wait_for_beats(receiver, beats_before + 10, 120).context("the guest does not go on")?;
        sleep(AROUND);
        let mut logs = Vec::new();
        for (clock, host) in self.clocks.iter_mut().zip(Host::PAIR) {
            clock.set()?;
            logs.extend(watch::parse(&host.run(&format!("cat {DIR}/log"))?, |time| clock.ours(time)));
        }
        let around = AROUND.as_secs_f64();
        let seen = watch::judge(logs, began - around..began + total + around)?;
        ensure!(seen.bad == 0 && seen.lost == 0, "damaged: {} bad, {} lost", seen.bad, seen.lost);
        Ok(Moved {
            way,
            total,
            sent: if way == Way::QemuToQemuSocket { 0 } else { sent },
            rounds,
            pause,
            seen,
            said,
        })
    }

    /// The way for a stream, with what waits for it at the other end.
    fn lead(&self, way: Way) -> Result<Lead> {
        let receive = match way {
            Way::XenToXen | Way::QemuToXen => "xl migrate-receive".to_owned(),
            Way::XenToQemu => format!(
                "{DIR}/hyperferry receive --progress none --progress-file {PROGRESS} --qemu qemu-{} --journal {DIR}/journal \
                 --serial {DIR}/serial --map-bridge {BRIDGE}={BRIDGE}",
                self.options.qemu
            ),
            Way::QemuToQemu => format!("socat STDIN UNIX-CONNECT:{}", incoming(way)),
            Way::QemuToQemuSocket => return Ok(Lead::nowhere()),
        };
        let there = if matches!(way, Way::XenToXen | Way::QemuToXen) { Host::Xen } else { Host::Kvm };
        self.options.transport.lead_to(there, &receive)
    }

    /// `xl migrate`; gives what it said.
    fn by_xl(&self, lead: &Lead) -> Result<Vec<(f64, String)>> {
        told(Host::Xen, &format!("xl migrate -s '' {GUEST} 'exec {}' 2>&1 </dev/null", lead.command))
    }

    /// `hyperferry send`; gives what it said.
    fn by_send(&mut self, lead: &Lead) -> Result<Vec<(f64, String)>> {
        let Some(Qemu { qmp, .. }) = self.qemu.take() else { bail!("no QEMU has the guest") };
        let command = format!(
            "{DIR}/hyperferry send --progress none --progress-file {PROGRESS} --journal {DIR}/journal --serial file:{DIR}/serial \
             --map-bridge {BRIDGE}={BRIDGE} {qmp} -- {} 2>&1 </dev/null",
            lead.command
        );
        told(Host::Kvm, &command)
    }

    /// QEMU's `migrate`, into a QEMU of the same command line; gives `move-qemu`'s account.
    fn by_qemu(&mut self, way: Way, lead: &Lead) -> Result<Value> {
        let Some(Qemu { pid, qmp }) = &self.qemu else { bail!("no QEMU has the guest") };
        let incoming = incoming(way);
        let uri = match way {
            Way::QemuToQemuSocket => format!("unix:{incoming}"),
            _ => format!("exec:exec {}", lead.command),
        };
        let printed = Host::Kvm.run(&format!("{DIR}/move-qemu {pid} {qmp} {incoming} '{uri}'"))?;
        let account: Value = serde_json::from_str(&printed)?;
        let word = |key: &str| account.get(key).context("move-qemu says too little");
        let qmp = word("qmp")?.as_str().unwrap_or_default().to_owned();
        self.qemu = Some(Qemu { pid: word("pid")?.as_u64().unwrap_or_default(), qmp });
        Ok(account)
    }

    /// Ends the guest wherever it is, and the probes.
    fn clean(&mut self) {
        self.qemu = None;
        let names = format!("{GUEST} {GUEST}--incoming {GUEST}--migratedaway");
        let ended = [
            Host::Xen.ssh(&format!("for name in {names}; do xl destroy $name; done; kill $(cat {DIR}/probe.pid)")),
            Host::Kvm.ssh(&format!(
                "for process in /proc/[0-9]*; do
                   case $(readlink $process/exe) in
                   *qemu*) tr '\\0' ' ' <$process/cmdline | grep -q '{DIR}/' && kill -9 $(basename $process) ;;
                   esac
                 done
                 kill $(cat {DIR}/probe.pid); rm -rf {DIR}/journal {DIR}/*.incoming* {PROGRESS}"
            )),
        ];
        for mut command in ended {
            command.stdout(Stdio::null()).stderr(Stdio::null()).succeeds();
        }
    }
}

/// Where the next QEMU waits for its stream.
fn incoming(way: Way) -> String {
    format!("{DIR}/{}.incoming", if way == Way::QemuToQemu { "a" } else { "b" })
}

/// Runs the command that moves the guest; gives what it said.
fn told(host: Host, command: &str) -> Result<Vec<(f64, String)>> {
    let (said, status) = watch::listen(&mut host.ssh(command))?;
    let end: Vec<_> = said.iter().rev().take(20).rev().map(|(_, line)| line.as_str()).collect();
    ensure!(status.success(), "{host} said:\n{}", end.join("\n"));
    Ok(said)
}

/// Waits until a host's probe has seen so many beats. The host looks by itself: a connection costs it a good part of a
/// second under emulation, which would be the guest's.
fn wait_for_beats(host: Host, beats: u32, seconds: u32) -> Result<()> {
    host.run(&format!(
        "for i in $(seq {seconds}); do [ $(grep -c '{BEAT}' {DIR}/log) -ge {beats} ] && exit 0; sleep 1; done
         tail -n 5 {DIR}/log; exit 1"
    ))
    .map(drop)
}

fn sent_by(host: Host) -> Result<u64> {
    Ok(host.run("cat /sys/class/net/eth0/statistics/tx_bytes")?.trim().parse()?)
}

/// The QEMU that hyperferry names: `the guest runs here: QEMU process 3097, QMP /var/lib/hyperferry/1795259285799-3056.qmp`.
fn named(said: &[(f64, String)]) -> Option<Qemu> {
    let (_, line) = said.iter().rfind(|(_, line)| line.contains("QEMU process"))?;
    let (pid, qmp) = line.split_once("QEMU process ")?.1.split_once(", QMP ")?;
    Some(Qemu { pid: pid.parse().ok()?, qmp: qmp.trim().to_owned() })
}

fn print(moves: &[Moved]) -> Result<()> {
    ensure!(!moves.is_empty(), "no move was measured");
    println!(
        "{:<22} {:>5} {:>15} {:>15} {:>9} {:>9} {:>7}",
        "move (medians)", "moves", "silence serial", "silence ping", "total s", "sent MB", "rounds"
    );
    let median = |way: Way, figure: &dyn Fn(&Moved) -> f64| {
        let mut figures: Vec<f64> = moves.iter().filter(|moved| moved.way == way).map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
    };
    for (way, name) in WAYS {
        println!(
            "{name:<22} {:>5} {:>7.2} ({:>5.2}) {:>7.2} ({:>5.2}) {:>9.1} {:>9.1} {:>7.0}",
            moves.iter().filter(|moved| moved.way == way).count(),
            median(way, &|moved| moved.seen.serial),
            median(way, &|moved| moved.seen.usual_serial),
            median(way, &|moved| moved.seen.ping),
            median(way, &|moved| moved.seen.usual_ping),
            median(way, &|moved| moved.total),
            median(way, &|moved| moved.sent as f64 / 1e6),
            median(way, &|moved| moved.rounds as f64),
        );
    }
    for (way, name) in [(Way::XenToQemu, "Xen to QEMU"), (Way::QemuToXen, "QEMU to Xen")] {
        for (other, alike) in [(Way::QemuToQemu, "QEMU to QEMU"), (Way::XenToXen, "Xen to Xen")] {
            let ratio = |figure: &dyn Fn(&Moved) -> f64| median(way, figure) / median(other, figure);
            println!(
                "{name} : {alike}   silence serial {:.2}, ping {:.2}; total {:.2}",
                ratio(&|moved| moved.seen.serial),
                ratio(&|moved| moved.seen.ping),
                ratio(&|moved| moved.total),
            );
        }
    }
    let (mut pauses, mut parts) = (0.0, [0.0; 4]);
    for pause in moves.iter().filter(|moved| moved.way == Way::XenToQemu).filter_map(|moved| moved.pause) {
        let ours = [pause.source, pause.load, pause.hand_over, pause.resume];
        parts.iter_mut().zip(ours).for_each(|(sum, part)| *sum += part);
        pauses += 1.0;
    }
    let [source, load, hand_over, resume] = parts.map(|sum| sum / pauses);
    println!(
        "Xen to QEMU, on an average: {source:.2} s the source's last pages and state, {load:.2} s QEMU loads, \
         {hand_over:.2} s until \"go\" has come, {resume:.2} s until it runs"
    );
    let rate = moves.iter().map(|moved| moved.seen.beats_per_second * 64.0).sum::<f64>() / moves.len() as f64;
    println!("the guest rewrote {rate:.0} pages a second");
    Ok(())
}
