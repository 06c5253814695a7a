//! `hyperferry completions`: what a shell needs to complete our arguments.

use clap::CommandFactory;

use crate::{
    args::{Cli, Completions},
    exit::{self, Result},
    output,
};

/// Prints them.
pub(super) fn run(arguments: &Completions) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "hyperferry", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(exit::OK)
}
