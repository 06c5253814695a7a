//! `hyperferry receive`: takes a guest from an unmodified `xl migrate` on a Xen host, and lets it run in a QEMU here.
//!
//! Standard input and output belong to the sender. All words go to standard error, which ssh brings to its terminal.
//!
//! Under the name `xl` it is what `xl migrate GUEST HOST` calls on the destination ([`super::xl`]).

use std::path::PathBuf;

use clap::Args;
use hyperferry_relay::{
    journal::{Entry, Journal, Step},
    link::Address,
    progress::Progress,
    qemu,
    receive::{self, Received, Sender},
    session::{Arrived, Landing, Shim},
};
use hyperferry_translate::source::Source;
use hyperferry_vm_model::Vm;

use super::{
    check,
    listen::{self, sender_name},
    resolve,
};
use crate::{
    args::{Accel, Destination, Loss, Tls, Words},
    destination::{require_disks, say_what_to_map},
    exit::{self, Error, Result},
    progress,
    report::Account,
    runtime,
    stay::{Papers, Stay, named},
};

/// Arguments of `receive`.
#[derive(Args, Debug)]
pub(crate) struct Receive {
    /// QEMU on this host
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// What to accept, and where to account for it
    #[command(flatten)]
    pub(crate) loss: Loss,
    /// Where the guest's first serial port goes; `{name}` in it is the guest's name
    #[arg(long, value_name = "FILE")]
    pub(crate) serial: Option<PathBuf>,
    /// How the guest stays here
    #[command(flatten)]
    pub(crate) stay: Stay,
    /// Where each step is written down, and QEMU's monitor listens
    #[arg(long, value_name = "DIR", default_value = resolve::JOURNAL)]
    pub(crate) journal: PathBuf,
    /// Take guests from whoever connects, each in a process of its own: `unix:PATH` or `tls:ADDRESS:PORT`
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<Address>,
    /// Who we are to those who connect
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Who sends the guest, for the journal [default: whom ssh knows]
    #[arg(long, value_name = "NAME", value_parser = sender_name, overrides_with = "sender")]
    pub(crate) sender: Option<String>,
    /// Leave the guest paused, as `xl migrate -p` asks
    #[arg(long, overrides_with = "paused")]
    pub(crate) paused: bool,
    /// More arguments for QEMU, after ours
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    pub(crate) extra: Vec<String>,
}

/// Takes one guest.
pub(super) fn run(mut arguments: Receive, words: &Words) -> Result<u8> {
    let landing = landing(&mut arguments)?;
    let journal = Journal::open(&arguments.journal)?;
    if let Some(address) = &arguments.listen {
        return listen::run(address, &arguments.tls);
    }
    let mut entry = journal.begin()?;
    runtime::run(async {
        resolve::end_leftovers(&journal).await?;
        Ok(qemu::version(&landing.qemu).await?)
    })?;
    let mut sender = Sender::standard()?;
    let opened = sender.open(arguments.loss.allow.policy()).map_err(Error::from);
    let source = account(&arguments, words).of(opened)?;
    let config = &source.outline().config;
    let from = listen::sender(arguments.sender.as_deref());
    let (guest, uuid) = (config.name.clone(), config.uuid.clone());
    for path in arguments.serial.iter_mut().chain(&mut arguments.loss.report) {
        *path = named(path, &guest);
    }
    let shown = progress::start(words, &guest)?;
    say!("guest {guest} comes in");
    entry.note(Step::Begin { guest, uuid, from })?;
    let account = account(&arguments, words);
    let (received, report) = runtime::run(async {
        let loaded = load(&arguments, landing, source, &mut entry, &shown.progress);
        let loaded = runtime::unless_interrupted(loaded).await;
        shown.clear();
        let loaded = account.of(loaded);
        let (arrived, landing, papers) = loaded.inspect_err(|error| receive::failed(&mut entry, error))?;
        // From here on the sender may give its guest away at any time: no signal comes between.
        let _deaf = tokio::spawn(deaf());
        let vm = &arrived.translated.vm;
        let received = sender.hand_over(arrived.loaded, vm, &mut entry, arguments.paused).await?;
        if let Some(state) = arrived.shim.and_then(Shim::keep) {
            say!("the platform shim keeps the guest's HPET in {}", state.display());
        }
        papers.write(vm, &landing, &arrived.machine, received.pid());
        Ok((received, arrived.translated.report))
    })?;
    shown.done();
    say(&received, &entry);
    account.tell(&report)?;
    reported(&received, &entry)
}

/// Signals are heard and not obeyed.
async fn deaf() {
    while let Ok(signal) = hyperferry_relay::interrupted().await {
        say!("{signal} comes too late: the sender decides now which copy runs");
    }
}

fn account<'a>(arguments: &'a Receive, words: &Words) -> Account<'a> {
    Account { file: arguments.loss.report.as_deref(), to: "qemu", verbose: words.verbose > 0 }
}

/// The destination. Emulation only for those who ask for it: a guest that moves expects its speed.
fn landing(arguments: &mut Receive) -> Result<Landing> {
    if !matches!(arguments.destination.accel, Some(Accel::Tcg)) {
        let remedy = "--accel tcg takes the guest into QEMU's emulation instead";
        qemu::kvm_usable().map_err(|why| Error::Host(format!("KVM cannot be used: {why}; {remedy}")))?;
        arguments.destination.accel = Some(Accel::Kvm);
    }
    let mut landing = arguments.destination.landing(arguments.loss.allow.policy())?;
    landing.extra.clone_from(&arguments.extra);
    Ok(landing)
}

/// Up to a guest that is loaded and stopped. Dropped before its end, it leaves nothing behind.
async fn load(
    arguments: &Receive,
    mut landing: Landing,
    source: Source<std::fs::File>,
    entry: &mut Entry,
    progress: &Progress,
) -> Result<(Arrived, Landing, Papers)> {
    landing.asked_at = Some(entry.monitor().to_owned());
    let monitor = entry.monitor().display().to_string().replace(',', ",,");
    landing.extra.extend(["-qmp".to_owned(), format!("unix:{monitor},server=on,wait=off")]);
    if let Some(serial) = &arguments.serial {
        landing.options.serial = format!("file:{}", serial.display());
    }
    let outline: &Vm = source.outline();
    say_what_to_map(outline, &landing.options);
    require_disks(outline, &landing.options)?;
    let admitted = landing.admit(outline).await?;
    landing.files = Some(entry.files());
    let papers = arguments.stay.prepare(outline, &mut landing, &arguments.extra)?;
    check::before_pages(&landing, outline, &arguments.journal).await?;
    entry.note(Step::Loading)?;
    Ok((landing.load(source, admitted, progress).await?, landing, papers))
}

fn say(received: &Received, entry: &Entry) {
    let pid = received.pid().map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    let state = match entry.last() {
        Some(Step::Running { paused: true }) => "is here, paused",
        _ => "runs here",
    };
    say!("the guest {state}: QEMU process {pid}, QMP {}", entry.monitor().display());
    say!("it took {} ms from the sender's permission", received.took().as_millis());
}

fn reported(received: &Received, entry: &Entry) -> Result<u8> {
    let Err(error) = received.reported() else { return Ok(exit::OK) };
    say!("warning: the sender was not told, and keeps its own copy stopped: {error}");
    say!("destroy that one; `hyperferry resolve` says how ({})", entry.path().display());
    Ok(exit::UNKNOWN)
}
