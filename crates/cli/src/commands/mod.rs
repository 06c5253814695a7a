//! The commands, one file each.

pub(crate) mod check;
mod completions;
mod convert;
mod diff;
mod inspect;
mod land;
pub(crate) mod libvirt_xml;
mod listen;
mod man;
pub(crate) mod qemu_args;
pub(crate) mod receive;
pub(crate) mod relay;
pub(crate) mod resolve;
pub(crate) mod send;
mod verify;
pub(crate) mod xl;

use std::path::Path;

use hyperferry_relay::endpoint::open_input;
use hyperferry_translate::{
    qemu::Hint,
    refusal::Policy,
    source::{self, Source},
};

use crate::{
    args::{Cli, Command},
    exit::Result,
};

/// A VM that is read from an input of any compression.
type Intake = Source<Box<dyn std::io::Read + Send>>;

/// Does what was asked for, and gives the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8> {
    let Cli { command, words } = cli;
    match command {
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments, &words),
        Command::Convert(arguments) => convert::run(&arguments, &words),
        Command::QemuArgs(arguments) => qemu_args::run(&arguments),
        Command::LibvirtXml(arguments) => libvirt_xml::run(&arguments),
        Command::Land(arguments) => land::run(arguments, &words),
        Command::Receive(arguments) => receive::run(arguments, &words),
        Command::Send(arguments) => send::run(arguments, &words),
        Command::Relay(arguments) => relay::run(&arguments, &words),
        Command::Resolve(arguments) => resolve::run(&arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man => man::run(),
    }
}

/// Opens an input and reads what comes before memory.
fn open(path: &Path, policy: Policy) -> Result<Intake> {
    // What can be read twice tells its devices before its memory.
    let hint = if path.is_file() { source::survey(open_input(path)?.reader)? } else { Hint::default() };
    let input = open_input(path)?;
    tracing::info!(input = %path.display(), compression = ?input.compression, "opened");
    Ok(Source::open_with(input.reader, policy, hint)?)
}
