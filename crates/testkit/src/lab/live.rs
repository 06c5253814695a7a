//! Live moves in the lab: an unmodified `xl migrate` takes a running guest from the Xen host into QEMU on the KVM host.
//!
//! `cut` stands between the two. It counts what passes, and can kill.

mod due;
mod guest;
mod hosts;
mod resolve;
mod route;

use std::{
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

pub use self::{due::Place, guest::Guest, route::Route};
pub(super) use self::{
    guest::configuration,
    hosts::{boot_again, clean_kvm, clean_xen, install, lost_in_emulation, no_qemu_left, until},
    resolve::{carry_out, resolve},
};
use super::{
    Host,
    console::{Console, Judged, Seen, now},
};
use crate::cut::{Kill, Phase};

/// Beats before a move, and after it.
const BEATS: usize = 10;
/// How often a guest is started: some starts end in the emulation's own faults.
const STARTS: u32 = 3;
/// How long a guest may take to its beats; the hosts may be busy.
const PATIENCE: Duration = Duration::from_secs(240);
/// The same for a guest that runs already. One that says nothing for so long has died of the emulation.
const IMPATIENCE: Duration = Duration::from_secs(45);

/// What the KVM host lacks for a guest, which has to stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurdle {
    /// Its disk.
    Disk,
    /// A feature of its processor.
    Feature,
}

impl Hurdle {
    /// What is missing.
    fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Feature => "CPU feature",
        }
    }

    /// How the receiver says so.
    fn words(self) -> &'static str {
        match self {
            Self::Disk => "error: disk hda: there is no ",
            Self::Feature => "refused [cpu-features]",
        }
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
    /// The way to it.
    pub route: Route,
    /// Whether the guest has a disk, and a network card on a bridge. Both have other names on the KVM host.
    pub devices: bool,
    /// What is not there.
    pub hurdle: Option<Hurdle>,
}

impl Plan {
    /// A move with nothing to it.
    pub fn new(guest: Guest, qemu: &'static str) -> Self {
        Self { guest, qemu, kill: None, route: Route::Direct, devices: false, hurdle: None }
    }

    /// Something is killed.
    #[must_use]
    pub fn kill(self, kill: Kill, phase: Phase) -> Self {
        Self { kill: Some((kill, phase)), ..self }
    }

    /// Another way.
    #[must_use]
    pub fn by(self, route: Route) -> Self {
        Self { route, ..self }
    }

    /// A guest with a disk and a network card.
    #[must_use]
    pub fn with_devices(self) -> Self {
        Self { devices: true, ..self }
    }

    /// Something is missing.
    #[must_use]
    pub fn without(self, hurdle: Hurdle) -> Self {
        Self { hurdle: Some(hurdle), devices: hurdle == Hurdle::Disk, ..self }
    }

    /// In a few words, what is special about it.
    fn special(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.kill.map(|(kill, phase)| format!("{kill} at {phase}")));
        words.extend(self.hurdle.map(|hurdle| format!("no {}", hurdle.name())));
        words.extend((self.devices && self.hurdle.is_none()).then(|| "disk and card".to_owned()));
        words.extend((self.route != Route::Direct).then(|| format!("by {}", self.route)));
        words.join(", ")
    }
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
    /// Where the guest has to be in the end.
    pub place: Place,
    /// What was not as it should be.
    pub faults: Vec<String>,
    /// What `xl migrate` and the receiver said, and `hyperferry resolve` after it.
    pub said: String,
}

/// Heads the lines of [`Moved`].
pub const HEADING: &str = "guest   qemu special                    xl s  silence  usual rounds       MB beats   bad  lost  stood  guest is";

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7} {:4} {:24}", self.plan.guest, self.plan.qemu, self.plan.special())?;
        write!(f, "{:7.1}", self.took.as_secs_f64())?;
        figures(f, &self.judged, self.rounds, self.bytes)?;
        write!(f, "  {}", self.place)?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n    WRONG: {fault}"))
    }
}

/// The columns from silence to the guest's clock, of moves both ways.
pub(super) fn figures(f: &mut fmt::Formatter<'_>, judged: &Judged, rounds: u64, bytes: u64) -> fmt::Result {
    let Judged { beats, bad, lost, silence, usual, clock } = judged;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let megabytes = bytes as f64 / 1e6;
    write!(
        f,
        " {silence:8.2} {usual:6.2} {rounds:6} {megabytes:8.1} {beats:5} {bad:5} {lost:5} {:6.2}",
        clock.stood
    )
}

/// The two hosts, with `hyperferry` and `cut` on both.
#[derive(Debug)]
pub struct Live {
    hyperferry: PathBuf,
    binaries: [Vec<u8>; 2],
    /// A guest that stayed where it was, and can move again.
    stayed: Option<Running>,
}

/// A guest, and its serial port on either host.
#[derive(Debug)]
struct Running {
    guest: Guest,
    devices: bool,
    name: String,
    here: Console,
    elsewhere: Console,
}

impl Live {
    /// Puts these programs there; both have to run in either host.
    pub fn set_up(hyperferry: &Path, cut: &Path) -> Result<Self> {
        let binaries = [fs::read(hyperferry)?, fs::read(cut)?];
        let live = Self { hyperferry: hyperferry.to_owned(), binaries, stayed: None };
        hosts::equip(&live.binaries)?;
        Ok(live)
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
        let again = self.stayed.take().filter(|stayed| stayed.waits_again(&plan));
        let running = again.map_or_else(|| start(&plan), Ok)?;
        let before = running.here.seen().beats().len();
        let began = (Instant::now(), now());
        let mut said = self.migrate(&plan, &running.name)?;
        let (took, ended) = (began.0.elapsed(), now());
        match plan.kill {
            Some((Kill::Network, _)) => Host::Kvm.wait(PATIENCE)?,
            Some((Kill::Host, _)) => {
                boot_again(Host::Kvm)?;
                hosts::equip(&self.binaries)?;
            }
            _ => {}
        }
        let place = Place::due(&plan);
        let mut faults = place.reached(&running, before, &mut said)?;
        let judged = running.judged(&(began.1..ended));
        faults.extend(judged.faults(&running.seen(), place.leap(&judged)));
        if let Some(hurdle) = plan.hurdle
            && !said.contains(hurdle.words())
        {
            faults.push(format!("nobody said \"{}\"", hurdle.words()));
        }
        if plan.devices && matches!(place, Place::Kvm { .. }) && !plan.guest.answers_pings(Host::Kvm) {
            faults.push("it does not answer pings".to_owned());
        }
        let (rounds, bytes) = (counted(&said, "rounds"), counted(&said, "bytes"));
        let known_to_kvm = !matches!(plan.kill, Some((Kill::Host | Kill::Network, _)));
        if faults.is_empty() && place == Place::Xen && known_to_kvm {
            self.stayed = Some(running);
        } else {
            clean_xen(&running.name);
        }
        clean_kvm();
        Ok(Moved { plan, judged, took, rounds, bytes, place, faults, said })
    }

    /// Runs `xl migrate` to its end and gives what was said.
    fn migrate(&self, plan: &Plan, name: &str) -> Result<String> {
        let way = route::Way::open(plan, &self.hyperferry)?;
        let line = format!("xl migrate -s '' {name} '{}' 2>&1; echo \"xl ended with $?\"", way.command);
        let output = Host::Xen.ssh(&line).stdin(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Boots the KVM host anew, without a feature of its processor if one is named.
    pub fn boot_kvm(&self, without: Option<&str>) -> Result<()> {
        hosts::boot_kvm(without)?;
        hosts::equip(&self.binaries)
    }
}

impl Running {
    /// Whether it will do for that plan: then it forgets what it has said, and waits for more.
    fn waits_again(&self, plan: &Plan) -> bool {
        self.here.forget();
        self.elsewhere.forget();
        (self.guest, self.devices) == (plan.guest, plan.devices)
            && self.here.waits_for_beats(BEATS, IMPATIENCE)
    }

    fn seen(&self) -> Seen {
        self.here.seen().then(self.elsewhere.seen())
    }

    /// Judges it once it is where it is to be.
    fn judged(&self, migration: &Range<f64>) -> Judged {
        Judged::once_settled(|| {
            let last_here = self.here.seen().beats().last().map(|beat| beat.0);
            let first_there = self.elsewhere.seen().beats().first().map(|beat| beat.0);
            let moved = last_here.zip(first_there).map(|(last, first)| last..first);
            Judged::of(&self.seen(), moved.unwrap_or_else(|| migration.clone()))
        })
    }
}

/// What `cut` has counted, by its last words.
pub(super) fn counted(said: &str, name: &str) -> u64 {
    let line = said.lines().rev().find(|line| line.starts_with("cut: rounds=")).unwrap_or_default();
    let value = line.split([' ', '=']).skip_while(|word| *word != name).nth(1);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Starts a guest on the Xen host and waits for its beats.
fn start(plan: &Plan) -> Result<Running> {
    let (guest, devices, name) = (plan.guest, plan.devices, plan.guest.name());
    let (serial, there) = (format!("/var/log/xen/{name}.serial"), format!("/root/live/{name}.serial"));
    if devices {
        guest::provide_devices()?;
    }
    for _ in 0..STARTS {
        // One guest at a time: two make the emulation's faults frequent.
        Guest::ALL.iter().for_each(|guest| clean_xen(&guest.name()));
        clean_kvm();
        Host::Xen.run(&format!("rm -f {serial}; xl dmesg -c >/dev/null"))?;
        Host::Xen.send(guest.configuration(&serial, devices).as_bytes(), &format!("/root/{name}.cfg"))?;
        Host::Xen.run(&format!("xl create -q /root/{name}.cfg"))?;
        let here = Console::watch(Host::Xen, &serial)?;
        let elsewhere = Console::watch(Host::Kvm, &there)?;
        if here.waits_for_beats(BEATS, PATIENCE) {
            return Ok(Running { guest, devices, name, here, elsewhere });
        }
        eprintln!("{name} did not come to its beats: {:?}", here.seen().lines.last());
    }
    bail!("{name} did not start in {STARTS} attempts");
}
