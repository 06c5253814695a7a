//! The `hyperferry` command: glue between the terminal and the libraries, and nothing else.
//!
//! * [`args`] says what can be asked for, [`commands`] has one file for each command.
//! * [`exit`] is the one place where an error becomes an exit code (`docs/exit-codes.md`).
//! * Data goes to standard output ([`output`]); words, findings and progress go to standard error.

// `say!` is for all that follows.
#[macro_use]
mod output;

mod args;
mod commands;
mod destination;
mod dump;
mod exit;
mod host;
mod logging;
mod model;
mod progress;
mod report;
mod runtime;
mod stay;
mod unit;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match commands::xl::as_xl(std::env::args_os()) {
        None => args::Cli::parse(),
        Some(Ok(cli)) => cli,
        Some(Err(error)) => return exit::code_of(Err(error)),
    };
    logging::start(&cli.words);
    exit::code_of(commands::run(cli))
}
