//! `hyperferry send`: takes a running guest out of its QEMU and hands it to the `xl migrate-receive` of a Xen host.
//!
//! Words and the receiver's standard error go to standard error.

pub(super) mod leftover;

use std::path::{Path, PathBuf};

use clap::Args;
use hyperferry_relay::{
    endpoint::open_input,
    home::{Home, WayHome},
    journal::{Entry, Journal, Step},
    send::{Departure, Facts, Guest, Pace, Passage, Receiver, Sent, Xen},
};
use hyperferry_translate::{
    qemu::Accelerator,
    xen::{Identity, Relocation, Template},
};
use hyperferry_vm_model::GuestConfig;

use super::resolve;
use crate::{
    args::{Loss, Words, pair},
    exit::{self, Error, Result},
    host, progress,
    report::Account,
    runtime, unit,
};

/// What keeps an ssh from waiting for a host that is gone: three questions without an answer, a second apart for each.
const ALIVE: [&str; 4] = ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"];

/// Arguments of `send`.
#[derive(Args, Debug)]
pub(crate) struct Send {
    /// The QEMU that runs the guest: the socket of its QMP monitor, or its process id
    #[arg(value_name = "QEMU")]
    pub(crate) qemu: String,
    /// Xen host, as ssh names it
    #[arg(value_name = "XENHOST", required_unless_present = "command", conflicts_with = "command")]
    pub(crate) host: Option<String>,
    /// What reaches the Xen host, before its name
    #[arg(long, value_name = "COMMAND", default_value = "ssh", conflicts_with = "command")]
    pub(crate) ssh: String,
    /// Name of the guest at the destination [default: the name that QEMU was given]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where a disk is at the destination, by its place (`hda`) or by its path here
    #[arg(long, value_name = "NAME=PATH", value_parser = pair)]
    pub(crate) map_disk: Vec<(String, String)>,
    /// Which bridge there stands in for one here
    #[arg(long, value_name = "A=B", value_parser = pair)]
    pub(crate) map_bridge: Vec<(String, String)>,
    /// Where its first serial port goes there, as `serial` in a domain's configuration takes it: `file:/var/log/web`
    #[arg(long, value_name = "PLACE")]
    pub(crate) serial: Option<String>,
    /// Any save file of the Xen host whose guest has the same devices; what the host's Xen and device model load is
    /// learned from it [default: Xen 4.17 with QEMU 7.2]
    #[arg(long, value_name = "FILE")]
    pub(crate) template: Option<PathBuf>,
    /// What Xen said of a guest that came from there: the `.home` file that `receive` has kept, or the save file that it
    /// came in [default: by its UUID from the journal]
    #[arg(long, value_name = "FILE")]
    pub(crate) home: Option<PathBuf>,
    /// What to accept, and where to account for it
    #[command(flatten)]
    pub(crate) loss: Loss,
    /// Most bytes a second [default: as fast as it goes]
    #[arg(long, value_name = "BYTES")]
    pub(crate) bandwidth: Option<u64>,
    /// Stop the guest for its last pages once they take no longer than this, milliseconds
    #[arg(long, value_name = "MS", default_value_t = Pace::default().downtime_ms)]
    pub(crate) downtime: u64,
    /// Stop it after so many rounds of pages in any case
    #[arg(long, value_name = "N", default_value_t = Pace::default().rounds)]
    pub(crate) rounds: u64,
    /// Leave the guest paused at the destination
    #[arg(long, conflicts_with = "command")]
    pub(crate) paused: bool,
    /// Leave QEMU here, stopped, instead of ending it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Where each step is written down
    #[arg(long, value_name = "DIR", default_value = resolve::JOURNAL)]
    pub(crate) journal: PathBuf,
    /// A command that reaches an `xl migrate-receive`, in place of ssh
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Moves one guest.
pub(super) fn run(arguments: Send, words: &Words) -> Result<u8> {
    let monitor = monitor(&arguments.qemu)?;
    let command = command(&arguments);
    let named = arguments.home.as_deref().map(Home::read).transpose()?;
    let journal = Journal::open(&arguments.journal)?;
    let mut entry = journal.begin()?;
    let account = Account { file: arguments.loss.report.as_deref(), to: "xen", verbose: words.verbose > 0 };
    let (sent, report, shown) = runtime::run(async {
        let found = runtime::unless_interrupted(admit(&arguments, &monitor, named, &journal)).await;
        let (guest, passage, pace) = account.of(found)?;
        let shown = progress::start(words, &passage.outline().config.name)?;
        let config = &passage.outline().config;
        say!("guest {} leaves QEMU {}", config.name, guest.version());
        if let Some(unit) = unit::enabled(&config.name) {
            say!(
                "warning [unit]: {unit} starts it with this host; `systemctl disable {unit}` once it has left, or it will run \
                 on both"
            );
        }
        let (name, uuid) = (config.name.clone(), config.uuid.clone());
        let copy = leftover::Copy::of(&command, &name);
        let (monitor, pid) = (guest.monitor().to_owned(), guest.pid());
        entry.note(Step::Leave { guest: name, uuid, to: command.clone(), monitor, pid })?;
        let receiver = Receiver::start(&command)?;
        let mut departure = Departure::new(guest, receiver, shown.progress.clone());
        let watched = shown.progress.clone();
        let travelled = departure
            .travel(&pace, &mut entry, move |from, out| passage.translate(from, out, &pace, &watched));
        let travelled = runtime::unless_interrupted(async { Ok(travelled.await?) }).await;
        shown.clear();
        let report = match account.of(travelled) {
            Ok(report) => report,
            Err(error) => {
                let begun = matches!(entry.last(), Some(Step::Sending { .. }));
                let error = back(departure, &mut entry, error).await;
                return Err(if begun { copy.end_if_left(error).await } else { error });
            }
        };
        // From here on the guest may be the receiver's: no signal comes between.
        let _deaf = tokio::spawn(deaf());
        match departure.commit(&mut entry, arguments.keep).await {
            Ok(sent) => Ok((sent, report, shown)),
            Err(error) => Err(copy.end_if_left(error.into()).await),
        }
    })?;
    shown.done();
    account.tell(&report)?;
    Ok(say(&sent, &entry))
}

/// The guest goes on here.
async fn back(departure: Departure, entry: &mut Entry, error: Error) -> Error {
    match departure.back(entry, &error).await {
        Ok(()) => {
            say!("the guest goes on here");
            error
        }
        Err(stranded) => {
            let (first, stranded) = (error.to_string(), Box::new(stranded));
            hyperferry_relay::Error::Stranded { first, stranded }.into()
        }
    }
}

/// Signals are heard and not obeyed.
async fn deaf() {
    while let Ok(signal) = hyperferry_relay::interrupted().await {
        say!("{signal} comes too late: the destination decides now which copy runs");
    }
}

/// Finds the guest, and refuses what its QEMU's word is enough to refuse.
async fn admit(
    arguments: &Send,
    monitor: &Path,
    named: Option<Home>,
    journal: &Journal,
) -> Result<(Guest, Passage, Pace)> {
    let mut guest = Guest::attach(monitor).await?;
    if !guest.ran() {
        let state = guest.run_state().await?;
        let remedy = "let it run first (`cont`); --paused leaves it paused at the destination";
        return Err(Error::Unsupported(format!(
            "the guest does not run: QEMU is in state {state}; {remedy}"
        )));
    }
    let facts = Facts::ask(&mut guest).await?;
    if facts.config.name.is_empty() && arguments.name.is_none() {
        let why = "QEMU was given no name for its guest (-name); say one with --name NAME";
        return Err(Error::Usage(why.to_owned()));
    }
    let outline = facts.outline();
    let way = WayHome::find(&outline, facts.came_from_xen(), named, Some(journal))?;
    let accelerator = if facts.kvm { Accelerator::Kvm } else { Accelerator::Tcg };
    let to = xen(arguments, way.home().map_or(&outline.config, Home::config))?;
    let passage = Passage::admit(&facts, way, host::tsc_khz(accelerator), to)?;
    let pace = Pace {
        bandwidth: arguments.bandwidth,
        downtime_ms: arguments.downtime,
        rounds: arguments.rounds,
        still: facts.loses_writes(),
    };
    if pace.still {
        say!(
            "note [stopped]: QEMU {} under emulation loses what a guest writes while it is sent; it is stopped first",
            guest.version()
        );
    }
    Ok((guest, passage, pace))
}

/// The destination that was asked for.
fn xen(arguments: &Send, guest: &GuestConfig) -> Result<Xen> {
    let template = match &arguments.template {
        Some(path) => Template::from_stream(open_input(path)?.reader)?,
        None => Template::bundled(guest)?,
    };
    let relocation = Relocation {
        disks: arguments.map_disk.iter().cloned().collect(),
        bridges: arguments.map_bridge.iter().cloned().collect(),
        name: arguments.name.clone(),
        serial: arguments.serial.clone(),
        identity: Identity { uuid: host::random_uuid(), ..Identity::default() },
    };
    Ok(Xen { template, relocation, policy: arguments.loss.allow.policy() })
}

/// The command that reaches the receiver.
fn command(arguments: &Send) -> Vec<String> {
    let Some(host) = &arguments.host else { return arguments.command.clone() };
    let ssh = arguments.ssh.split_whitespace().map(str::to_owned);
    let words = [host.as_str(), "xl", "migrate-receive"].into_iter().chain(arguments.paused.then_some("-p"));
    ssh.chain(ALIVE.map(str::to_owned)).chain(words.map(str::to_owned)).collect()
}

/// The socket that was named, or that of the process.
fn monitor(qemu: &str) -> Result<PathBuf> {
    let path = Path::new(qemu);
    if path.exists() || qemu.is_empty() || !qemu.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(path.to_owned());
    }
    let proc = format!("/proc/{qemu}");
    let failed = |source| Error::Output { path: proc.clone(), source };
    let line = std::fs::read(format!("{proc}/cmdline")).map_err(failed)?;
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let found = socket(&words.collect::<Vec<_>>()).ok_or_else(|| {
        let remedy =
            "name the socket of its QMP monitor instead, or start it with -qmp unix:PATH,server=on,wait=off";
        Error::Host(format!(
            "process {qemu} has no QMP monitor on a UNIX socket among its arguments; {remedy}"
        ))
    })?;
    // As the process sees it.
    let folder = std::fs::read_link(format!("{proc}/cwd")).map_err(failed)?;
    Ok(folder.join(found))
}

/// The QMP socket in a QEMU's arguments: `-qmp unix:PATH,…`, or a `-mon` in control mode over a `-chardev socket`.
fn socket(words: &[String]) -> Option<PathBuf> {
    let pairs =
        || words.iter().zip(words.iter().skip(1)).map(|(key, value)| (key.trim_start_matches('-'), value));
    let value = |text: &str, key: &str| {
        text.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    let plain = pairs().filter(|(key, _)| matches!(*key, "qmp" | "qmp-pretty"));
    let plain = plain.filter_map(|(_, text)| Some(text.strip_prefix("unix:")?.split(',').next()?.to_owned()));
    let monitors =
        pairs().filter(|(key, text)| *key == "mon" && value(text, "mode").as_deref() == Some("control"));
    let chardevs = monitors
        .filter_map(|(_, text)| value(text, "chardev").or_else(|| Some(text.split(',').next()?.to_owned())));
    let sockets = chardevs.filter_map(|id| {
        let of_id = |(key, text): &(&str, &String)| {
            *key == "chardev" && text.starts_with("socket") && value(text, "id").as_ref() == Some(&id)
        };
        value(pairs().find(of_id)?.1, "path")
    });
    plain.chain(sockets).next().map(PathBuf::from)
}

fn say(sent: &Sent, entry: &Entry) -> u8 {
    say!("the guest runs at the destination, by its own word");
    if let Some(silence) = sent.silence {
        say!("it stood still for {} ms", silence.as_millis());
    }
    match &sent.ended {
        Ok(()) => exit::OK,
        Err(error) => {
            say!("warning: the copy here did not end, and stays stopped: {error}");
            say!("end it; `hyperferry resolve` says how ({})", entry.path().display());
            exit::UNKNOWN
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn the_monitor_is_found_among_qemus_arguments() {
        let socket = |line: &str| socket(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(socket("qemu -m 16 -qmp unix:/run/a.qmp,server=on,wait=off"), Some("/run/a.qmp".into()));
        let libvirt = "qemu -chardev socket,id=charmonitor,path=/run/m.sock,server=on -mon \
                       chardev=charmonitor,id=monitor,mode=control";
        assert_eq!(socket(libvirt), Some("/run/m.sock".into()));
        assert_eq!(socket("qemu -monitor unix:/run/hmp -qmp stdio"), None);
        assert_eq!(socket("qemu -chardev socket,id=s,path=/run/serial -serial chardev:s"), None);
    }

    #[test]
    fn the_receiver_is_reached_as_xl_reaches_it() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let words = |line: &str| {
            let Command::Send(arguments) = parse(line).unwrap().command else { panic!("not send") };
            command(&arguments).join(" ")
        };
        let alive = ALIVE.join(" ");
        assert_eq!(words("hyperferry send /q xen"), format!("ssh {alive} xen xl migrate-receive"));
        let port = ["hyperferry", "send", "/q", "--ssh", "ssh -p 22", "xen", "--paused"];
        let Command::Send(arguments) = Cli::try_parse_from(port).unwrap().command else { panic!("not send") };
        assert_eq!(command(&arguments).join(" "), format!("ssh -p 22 {alive} xen xl migrate-receive -p"));
        assert_eq!(words("hyperferry send /q -- xl migrate-receive"), "xl migrate-receive");
        assert!(parse("hyperferry send /q").is_err(), "to where?");
        assert!(parse("hyperferry send /q xen -- xl migrate-receive").is_err(), "to where?");
    }
}
