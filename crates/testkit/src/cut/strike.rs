//! What can be struck from the place where we stand: beside the receiver of a move from Xen, or at either end of the
//! connection of a move to Xen.

use std::{
    fmt, fs,
    os::unix::process::parent_id,
    process::{Command, Stdio},
    str::FromStr,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use super::{Phase, Then};

/// How long a QEMU may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the network is away: longer than an ssh waits that asks every five seconds, three times.
const NETWORK_AWAY: Duration = Duration::from_secs(45);
/// Takes the network away and brings it back; the kernel forgets routes over a device that is down.
const TAKE_NETWORK: &str = "route=$(ip route show default); ip link set eth0 down; sleep $0
    ip link set eth0 up; ip route add $route";

/// What is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// `hyperferry receive`, by SIGKILL.
    Gateway,
    /// The QEMU that it drives at that moment.
    Qemu,
    /// The connection: its server, and both pipes.
    Transport,
    /// The host's network, which is silent for a while and then comes back.
    Network,
    /// The host, as by a loss of power.
    Host,
    /// The process that started us to reach the receiver: `hyperferry send`.
    Sender,
    /// The command that we started: the ssh that reaches an `xl migrate-receive`, or that itself.
    Receiver,
}

impl Kill {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Gateway, Self::Qemu, Self::Transport, Self::Network, Self::Host, Self::Sender, Self::Receiver];

    /// Whether it is there in that phase of a move from Xen.
    pub fn is_there(self, phase: Phase) -> bool {
        !matches!((self, phase), (Self::Qemu, Phase::Banner) | (Self::Sender | Self::Receiver, _))
    }
}

/// One strike: what, when, and at which `hyperferry receive`.
#[derive(Debug)]
pub struct Strike {
    kill: Kill,
    at: Phase,
    gateway: u32,
    /// Its QEMU, once it waits for the guest.
    qemu: OnceLock<u32>,
}

impl Strike {
    /// `gateway` is the receiver's process id.
    pub fn new(kill: Kill, at: Phase, gateway: u32) -> Self {
        Self { kill, at, gateway, qemu: OnceLock::new() }
    }

    /// Strikes if it is time.
    pub fn reached(&self, phase: Phase) -> Then {
        let gateway = self.gateway;
        if self.kill == Kill::Qemu && (phase == Phase::Pages || phase == Phase::State) {
            // It outlives the gateway, and then nothing leads to it.
            if let Some(qemu) = qemu_of(gateway, "-incoming") {
                self.qemu.get_or_init(|| qemu);
            }
        }
        if phase != self.at {
            return Then::Pass;
        }
        match self.kill {
            // More has to pass before there is a QEMU, which tells its dialect first: one that may be gone before it is
            // struck. Then the next one is.
            Kill::Qemu if phase == Phase::Configuration => {
                thread::spawn(move || {
                    while let Some(qemu) = qemu_of(gateway, "-S") {
                        kill(qemu);
                    }
                });
                Then::Pass
            }
            Kill::Gateway if phase == Phase::Configuration => {
                thread::spawn(move || {
                    qemu_of(gateway, "-S");
                    // The two have met by then.
                    thread::sleep(Duration::from_millis(300));
                    kill(gateway);
                });
                Then::Pass
            }
            Kill::Gateway | Kill::Receiver => {
                kill(gateway);
                Then::Sever
            }
            Kill::Sender => {
                kill(parent_id());
                Then::Sever
            }
            Kill::Qemu => {
                self.qemu.get().copied().into_iter().for_each(kill);
                Then::Pass
            }
            Kill::Transport => {
                server().into_iter().for_each(kill);
                Then::Sever
            }
            Kill::Network => {
                let mut shell = Command::new("setsid");
                shell.args(["sh", "-c", TAKE_NETWORK, &NETWORK_AWAY.as_secs().to_string()]);
                // It outlives us, and a pipe that it held would be one that does not end.
                shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                drop(shell.spawn());
                thread::sleep(Duration::from_secs(1));
                Then::Pass
            }
            Kill::Host => {
                drop(fs::write("/proc/sysrq-trigger", "b"));
                Then::Sever
            }
        }
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gateway => "gateway",
            Self::Qemu => "qemu",
            Self::Transport => "transport",
            Self::Network => "network",
            Self::Host => "host",
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        })
    }
}

impl FromStr for Kill {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|kill| kill.to_string() == name);
        found.ok_or_else(|| {
            anyhow::anyhow!("what can be killed is {}", Self::ALL.map(|kill| kill.to_string()).join(", "))
        })
    }
}

fn kill(process: u32) {
    drop(Command::new("kill").args(["-KILL", &process.to_string()]).stderr(Stdio::null()).status());
}

/// A gateway's QEMU that has this argument, as soon as there is one.
fn qemu_of(gateway: u32, argument: &str) -> Option<u32> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let has = |child: &u32| {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
        };
        if let Some(qemu) = children(gateway).into_iter().find(has) {
            return Some(qemu);
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(|process| parent_of(*process) == Some(parent)).collect()
}

fn parent_of(process: u32) -> Option<u32> {
    // pid (name) state ppid: the name may hold anything.
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The process of the ssh server that we were started by.
fn server() -> Option<u32> {
    let mut process = std::process::id();
    while let Some(parent) = parent_of(process).filter(|parent| *parent > 1) {
        if fs::read_to_string(format!("/proc/{parent}/comm")).ok()?.starts_with("sshd") {
            return Some(parent);
        }
        process = parent;
    }
    None
}
