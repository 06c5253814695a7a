//! `hyperferry relay`: a machine between a Xen host and a KVM host. It answers `xl migrate` on standard input and output, or
//! plays a file, and passes all of it on to a `hyperferry receive` elsewhere.

use std::{
    future::Future,
    io::{IsTerminal, pipe, stderr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use hyperferry_relay::{
    endpoint::open_input,
    gateway::{self, Brake, NearEnd, Passing, Played},
    interrupted,
    link::{Address, Request, dial},
};
use tokio::time::timeout;

use super::listen::{self, sender_name};
use crate::{
    args::{ProgressMode, Tls, Words},
    exit::{self, Error, Result},
    progress, runtime,
};

/// How long a file's own fault may take to show.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where in a receiver's command our options go.
const OPTIONS: &str = "{options}";

/// Arguments of `relay`.
#[derive(Args, Debug)]
pub(crate) struct Relay {
    /// Where the receiver is: `ssh:HOST`, `unix:PATH` or `tls:HOST:PORT`
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) to: Address,
    /// What ssh starts there; `{options}` in it says who sends the guest, and whether it is to stay paused
    #[arg(long, value_name = "COMMAND", default_value = "hyperferry receive {options}")]
    pub(crate) receiver: String,
    /// Send a save file or a recorded stream, instead of what comes on standard input
    #[arg(long, value_name = "FILE", conflicts_with = "listen")]
    pub(crate) from: Option<PathBuf>,
    /// Pass on guests of whoever connects, each in a process of its own: `unix:PATH` or `tls:ADDRESS:PORT`
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<Address>,
    /// Who we are to the receiver, and to those who connect
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Who sends the guest, for the receiver's journal [default: whom ssh knows]
    #[arg(long, value_name = "NAME", value_parser = sender_name, overrides_with = "sender")]
    pub(crate) sender: Option<String>,
    /// Have the receiver leave the guest paused, as `xl migrate -p` asks
    #[arg(long, overrides_with = "paused")]
    pub(crate) paused: bool,
}

/// Passes one guest on, or those of all who connect.
pub(super) fn run(arguments: &Relay, words: &Words) -> Result<u8> {
    if let Some(address) = &arguments.listen {
        return listen::run(address, &arguments.tls);
    }
    let identity = arguments.tls.identity()?;
    let request = Request { sender: listen::sender(arguments.sender.as_deref()), paused: arguments.paused };
    let command = receiver(arguments, &request)?;
    runtime::run(async {
        let dialled = async { Ok(dial(&arguments.to, identity.as_ref(), &command, &request).await?) };
        let far = runtime::unless_interrupted(dialled).await?;
        let (near, mut played) = near(arguments.from.as_deref())?;
        let opened = runtime::unless_interrupted(async { Ok(Passing::open(near, far).await?) }).await;
        let passing = first_fault(opened, &mut played).await?;
        let guest = passing.outline().config.name.clone();
        say!("guest {guest} passes through to {}", arguments.to);
        let shown = progress::start(&spoken(words), &guest)?;
        let brake = passing.brake();
        let passed = unless_stopped(&brake, async { Ok(passing.run(&shown.progress).await?) }).await;
        shown.clear();
        first_fault(passed, &mut played).await?;
        shown.done();
        say!("guest {guest} has passed");
        Ok(exit::OK)
    })
}

/// What ssh starts on the receiver's host. There it is the only way to be asked for anything.
fn receiver(arguments: &Relay, request: &Request) -> Result<String> {
    if request.paused && matches!(arguments.to, Address::Ssh(_)) && !arguments.receiver.contains(OPTIONS) {
        let why = format!("--paused: the command of --receiver has no {OPTIONS} and would not hear of it");
        return Err(Error::Usage(why));
    }
    let sender = request.sender.as_deref().unwrap_or("unknown");
    let paused = if request.paused { " --paused" } else { "" };
    let options = format!("--sender={sender}{paused}");
    Ok(arguments.receiver.replace(OPTIONS, &options).replace("{sender}", sender))
}

/// The sender: a file, or whoever started us.
fn near(from: Option<&Path>) -> Result<(NearEnd, Option<Played>)> {
    let Some(path) = from else { return Ok((NearEnd::standard()?, None)) };
    let input = open_input(path)?;
    let made = |error| Error::Host(format!("making a pipe: {error}"));
    let (stream, sent) = pipe().map_err(made)?;
    let (heard, answers) = pipe().map_err(made)?;
    let played = gateway::play(input.reader, heard, sent)?;
    Ok((NearEnd::pipes(stream, answers), Some(played)))
}

/// A file that cannot be read shows in the gateway as a sender that went away: what is wrong with it says more.
async fn first_fault<T>(outcome: Result<T>, played: &mut Option<Played>) -> Result<T> {
    let error = match outcome {
        Ok(made) => return Ok(made),
        Err(error) => error,
    };
    let Some(played) = played.take() else { return Err(error) };
    match timeout(LAST_WORDS, played.result()).await {
        Ok(Err(first)) => Err(first.into()),
        _ => Err(error),
    }
}

/// Does the work unless a signal comes before the receiver is ready. Behind that, only sender and receiver decide.
async fn unless_stopped<T>(brake: &Brake, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            signal = interrupted() => {
                let signal = signal?;
                if brake.pull() {
                    return Err(Error::Interrupted(signal));
                }
                say!("{signal} comes too late: sender and receiver decide now which copy runs");
            }
            result = &mut work => return result,
        }
    }
}

/// The receiver knows more, and its words pass through us: ours are for a terminal, or for whoever asks.
fn spoken(words: &Words) -> Words {
    let mut words = words.clone();
    if matches!(words.progress, ProgressMode::Auto) && !stderr().is_terminal() {
        words.progress = ProgressMode::None;
    }
    words
}
